package replica_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// stallingLog hangs while it is told to.
type stallingLog struct {
	raft.LogStore
	stall chan struct{}
	on    atomic.Bool
}

func (l *stallingLog) StoreLogs(logs []*raft.Log) error {
	if l.on.Load() {
		<-l.stall
	}
	return l.LogStore.StoreLogs(logs)
}

func TestMember_LeavesTheLeadToOthersWhenItsDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := make([]*stallingLog, 3)
		g := newGroup(t, 3, inMemory(make([]*raft.InmemTransport, 3), func(i int, cfg *replica.Config) {
			logs[i] = &stallingLog{LogStore: cfg.Stores.Log, stall: make(chan struct{})}
			cfg.Stores.Log = logs[i]
		}))
		defer func() { // for Raft to end
			for _, l := range logs {
				close(l.stall)
			}
			g.endInBubble()
		}()
		old := g.leader()
		write(t, g.members[old], func(tx *store.Tx) { tx.Create(secret("1", "one")) })
		time.Sleep(time.Minute)

		logs[old].on.Store(true)
		start := time.Now()
		tx := store.Begin(g.members[old].Snapshot())
		tx.Create(secret("2", "two"))
		if i, err := g.members[old].Propose(t.Context(), tx); !errors.Is(err, replica.ErrUnknownOutcome) {
			t.Errorf("proposed to a disk that hangs: %d, %v", i, err)
		}
		if err := <-g.done[old]; !errors.Is(err, replica.ErrStalled) {
			t.Errorf("ended with %v", err)
		}
		t.Logf("ended %s after the stall", time.Since(start))
		fresh := g.leader(old)
		write(t, g.members[fresh], func(tx *store.Tx) { tx.Create(secret("3", "three")) })
		t.Logf("another leader wrote %s after the stall", time.Since(start))
		if time.Since(start) > 10*time.Second {
			t.Error("took too long")
		}
	})
}

// TestMember_WhoseDiskHangsNowAndThenStays: it failed over it a moment ago, and
// there are others to lead.
func TestMember_WhoseDiskHangsNowAndThenStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mark := filepath.Join(t.TempDir(), "stalled")
		if err := errors.Join(os.WriteFile(mark, nil, 0o600), os.Chtimes(mark, time.Now(), time.Now())); err != nil {
			t.Fatal(err)
		}
		logs := make([]*stallingLog, 3)
		g := newGroup(t, 3, inMemory(make([]*raft.InmemTransport, 3), func(i int, cfg *replica.Config) {
			logs[i] = &stallingLog{LogStore: cfg.Stores.Log, stall: make(chan struct{})}
			cfg.Stores.Log, cfg.Dir = logs[i], filepath.Dir(mark)
			cfg.Space = func() (replica.Space, error) { return replica.Space{Free: 1 << 40}, nil }
		}))
		defer g.endInBubble()
		old := g.leader()
		logs[old].on.Store(true)
		tx := store.Begin(g.members[old].Snapshot())
		tx.Create(secret("1", "one"))
		if _, err := g.members[old].Propose(t.Context(), tx); !errors.Is(err, replica.ErrUnknownOutcome) {
			t.Errorf("got %v", err)
		}
		fresh := g.leader(old)
		write(t, g.members[fresh], func(tx *store.Tx) { tx.Create(secret("2", "two")) })
		logs[old].on.Store(false)
		close(logs[old].stall)
		time.Sleep(10 * time.Second)
		select {
		case err := <-g.done[old]:
			t.Fatalf("ended: %v", err)
		default:
		}
		write(t, g.members[g.leader()], func(tx *store.Tx) { tx.Create(secret("3", "three")) })
		time.Sleep(time.Second)
		if _, ok := g.members[old].Snapshot().Secrets.Get("3"); !ok {
			t.Error("it did not come back")
		}
	})
}

// deafWire loses all entries to one node, and no heartbeat.
type deafWire struct {
	*raft.InmemTransport
	to atomic.Value // string
}

func (w *deafWire) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if string(to) == w.to.Load() && args.PrevLogEntry > 0 {
		return errCut
	}
	return w.InmemTransport.AppendEntries(id, to, args, resp)
}

func TestMember_HandsOverWhenAFollowerGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wires := make([]*raft.InmemTransport, 3)
		deaf := make([]*deafWire, 3)
		g := newGroup(t, 3, inMemory(wires, func(i int, cfg *replica.Config) {
			deaf[i] = &deafWire{InmemTransport: wires[i]}
			cfg.Transport = deaf[i]
		}))
		defer g.endInBubble()
		old := g.leader()
		n := 0
		for range 120 {
			write(t, g.members[old], func(tx *store.Tx) { tx.Create(&object.Task{ID: fmt.Sprint(n)}) })
			n++
			time.Sleep(time.Second)
		}
		if g.leader() != old {
			t.Fatal("the leader changed without a reason")
		}
		cutOff := (old + 1) % 3
		deaf[old].to.Store(nodeName(cutOff))
		start := time.Now()
		for g.members[old].Leading() && time.Since(start) < 2*time.Minute {
			tx := store.Begin(g.members[old].Snapshot())
			tx.Create(&object.Task{ID: fmt.Sprint(n)})
			n++
			_, _ = g.members[old].Propose(t.Context(), tx) // it may be handing over
			time.Sleep(time.Second)
		}
		took := time.Since(start)
		fresh := g.leader()
		t.Logf("handed over after %s", took)
		if fresh == old || took < 30*time.Second || took > time.Minute {
			t.Errorf("member %d leads after %s, it was %d", fresh, took, old)
		}
		time.Sleep(5 * time.Second)
		if a, b := g.members[cutOff].Snapshot().Index, g.members[fresh].Snapshot().Index; a != b {
			t.Errorf("the follower is at %d, the leader at %d", a, b)
		}
	})
}
