package replica_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/replica"
)

func TestMember_TakesNoChangesOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g *group
		free := make([]atomic.Uint64, 3)
		g = newGroup(t, 3, inMemory(make([]*raft.InmemTransport, 3), func(i int, cfg *replica.Config) {
			free[i].Store(10 << 30)
			cfg.Space = func() (replica.Space, error) { return replica.Space{Free: free[i].Load(), Total: 100 << 30}, nil }
			cfg.Forward = direct{func() *group { return g }}
		}))
		defer g.endInBubble()
		old := g.leader()
		follower := g.members[(old+1)%3]
		write(t, follower, func(tx *store.Tx) { tx.Create(secret("1", "one")) })

		set := func(bytes uint64, who ...int) {
			for _, i := range who {
				free[i].Store(bytes)
			}
			time.Sleep(2 * time.Second)
		}
		set(100<<20, old)
		for _, m := range []*replica.Member{g.members[old], follower} {
			tx := store.Begin(m.Snapshot())
			tx.Create(secret("2", "two"))
			if _, err := m.Propose(t.Context(), tx); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "100 MiB are free") {
				t.Errorf("got %v", err)
			}
			if s, err := m.Read(t.Context()); err != nil || s.Secrets.Len() != 1 {
				t.Errorf("reading stopped: %v", err)
			}
		}
		time.Sleep(20 * time.Second)
		fresh := g.leader()
		if fresh == old {
			t.Fatal("leads on with a full disk")
		}
		write(t, follower, func(tx *store.Tx) { tx.Create(secret("2", "two")) })

		set(0, 0, 1, 2)
		tx := store.Begin(follower.Snapshot())
		tx.Create(secret("3", "three"))
		if _, err := follower.Propose(t.Context(), tx); !errdefs.IsResourceExhausted(err) {
			t.Errorf("got %v", err)
		}
		set(10<<30, 0, 1, 2)
		write(t, follower, func(tx *store.Tx) { tx.Create(secret("3", "three")) })
	})
}
