package storetest_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/replica"
	"skep/store/storetest"
)

// local is a server whose reads ask nobody.
type local struct{ *replica.Member }

func (l local) Read(context.Context) (*store.Snapshot, error) { return l.Snapshot(), nil }

// hasty is a server that reads as soon as it leads, and may not know yet what
// was acknowledged before.
type hasty struct {
	*replica.Member
	c *storetest.Cluster
}

func (h hasty) Read(ctx context.Context) (*store.Snapshot, error) {
	for i := range h.c.Size() {
		if h.c.Member(i) == h.Member && h.c.Led() == h.c.Name(i) {
			return h.Snapshot(), nil
		}
	}
	return h.Member.Read(ctx)
}

// TestSimulation_CatchesBugs simulates clusters with a bug in them. A
// simulation that does not notice proves nothing without.
func TestSimulation_CatchesBugs(t *testing.T) {
	const tries = 25
	bugs := map[string]bug{
		"nothing is synced": {prepare: func(c *storetest.Cluster) {
			for i := range c.Size() {
				c.Disk(i).Forget(5 * time.Second)
			}
		}},
		"reads are local": {server: func(_ *storetest.Cluster, m *replica.Member) storetest.Server { return local{m} }},
		"no barrier before leading": {
			prepare: func(c *storetest.Cluster) { c.Net.Slow(50 * time.Millisecond) },
			server:  func(c *storetest.Cluster, m *replica.Member) storetest.Server { return hasty{m, c} },
		},
		"applying differs": {prepare: func(c *storetest.Cluster) {
			c.Disk(1).Mangle(func(l *raft.Log) { l.Data = bytes.ReplaceAll(l.Data, []byte("c1-"), []byte("c9-")) })
		}},
	}
	for name, b := range bugs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(tries) {
				if bad := simulate(t, seed+1, b).trace.Violations(); len(bad) > 0 {
					t.Logf("seed %d: %s", seed+1, bad[0])
					return
				}
			}
			t.Errorf("not noticed in %d simulations", tries)
		})
	}
}

// TestRecovery_IsSafeFromThePast makes a new group of one member while the
// others, who went on without it, are away. When they are back, what the new
// group acknowledged is there, if they are told apart by the epoch, and only then.
func TestRecovery_IsSafeFromThePast(t *testing.T) {
	for _, tt := range []struct {
		name string
		next uint64
		lost bool
	}{{"another epoch", 1, false}, {"no epoch", 0, true}} {
		t.Run(tt.name, func(t *testing.T) {
			got, bad := recovery(t, tt.next)
			if got == tt.lost {
				t.Errorf("the new group goes on: %t", got)
			}
			if len(bad) > 0 && !tt.lost {
				t.Error(bad)
			}
		})
	}
}

// recovery reports whether the new group kept what it acknowledged.
func recovery(t *testing.T, epoch uint64) (kept bool, bad []string) {
	t.Helper()
	storetest.Bubble(t, func(t *testing.T) {
		t.Helper()
		var trace storetest.Trace
		c := storetest.NewCluster(t, storetest.Config{Size: 3, Trace: &trace})
		first := c.Leader()
		one := (first + 1) % 3
		c.Crash(one)
		for _, id := range []string{"a", "b", "c"} {
			if err := create(t, c.Member(c.Leader()), id); err != nil {
				t.Fatal(err)
			}
		}
		c.Partition(one)
		c.Recover(one, epoch)
		c.Start(one)
		m := c.Member(one)
		<-m.Ready()
		if err := create(t, m, "kept"); err != nil {
			t.Fatal(err)
		}
		c.Heal()
		time.Sleep(time.Minute)
		for i := range 3 { // whoever now leads writes on
			if n := c.Member(i); n != nil && n.Leading() {
				_ = create(t, n, "later"+c.Name(i))
			}
		}
		time.Sleep(time.Minute)
		if m := c.Member(one); m != nil && m.Leading() {
			_, kept = m.Snapshot().Tasks.Get("kept")
		}
		bad = trace.Violations()
	})
	return kept, bad
}
