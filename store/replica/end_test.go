package replica_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/replica"
)

// ahead is a way to the leader on which answers are faster than the log.
type ahead struct{ direct }

func (a ahead) Propose(ctx context.Context, leader string, command []byte) (uint64, error) {
	index, err := a.direct.Propose(ctx, leader, command)
	return index + 1000, err
}

func TestMember_ThatEndsBeforeItSeesItsOwnChangeHasMadeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g *group
		g = newGroup(t, 3, inMemory(make([]*raft.InmemTransport, 3), func(_ int, cfg *replica.Config) {
			cfg.Forward = ahead{direct{func() *group { return g }}}
		}))
		defer g.endInBubble()
		follower := (g.leader() + 1) % 3
		m := g.members[follower]
		done := make(chan error, 1)
		go func() { // waited for below
			tx := store.Begin(m.Snapshot())
			tx.Create(secret("1", "one"))
			_, err := m.Propose(t.Context(), tx)
			done <- err
		}()
		time.Sleep(time.Second)
		select {
		case err := <-done:
			t.Fatalf("it does not wait to see the change: %v", err)
		default:
		}
		g.stop(follower) // as a manager that demotes itself
		if err := <-done; err != nil {
			t.Errorf("the leader made the change, and the member says %v", err)
		}
	})
}
