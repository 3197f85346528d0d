package loop_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// busy is a store in which somebody else writes between a decision and its
// writing, for a while.
type busy struct {
	*storetest.Local
	t         *testing.T
	conflicts int
	sizes     []int // of what was proposed
}

func (b *busy) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	b.sizes = append(b.sizes, tx.Len())
	if b.conflicts > 0 {
		b.conflicts--
		t, _ := b.Snapshot().Tasks.Get("t000")
		b.Write(b.t, func(tx *store.Tx) { tx.Update(t) })
	}
	return b.Local.Propose(ctx, tx)
}

// accept moves every new task on to pending.
func accept(_ *store.Snapshot, ch store.Changes, _ time.Time) (c loop.Changes, _ time.Time) {
	for t := range ch.Snapshot.Tasks.All() {
		if t.Status.State == swarm.TaskStateNew {
			t = t.Clone().(*object.Task)
			t.Status.State = swarm.TaskStatePending
			c.Update = append(c.Update, t)
		}
	}
	return c, time.Time{}
}

func TestFollow_PlansAgainAfterConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &busy{Local: storetest.New(t), t: t, conflicts: 2}
		b.Write(t, func(tx *store.Tx) {
			for i := range 600 {
				task := &object.Task{ID: fmt.Sprintf("t%03d", i)}
				task.Status.State = swarm.TaskStateNew
				tx.Create(task)
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- loop.Follow(ctx, b, accept) }() // waited for below
		synctest.Wait()
		for task := range b.Snapshot().Tasks.All() {
			if task.Status.State != swarm.TaskStatePending {
				t.Fatalf("task %s is %s", task.ID, task.Status.State)
			}
		}
		if diff := cmp.Diff([]int{512, 128, 32, 32, 32}, b.sizes[:5]); diff != "" {
			t.Errorf("sizes of the writes (-want +got):\n%s", diff)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: got %v, want that it was canceled", err)
		}
	})
}

func TestEach_WakesUnitsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New(t)
		start := time.Now()
		var seen []string
		plan := loop.Each(func(_ *store.Snapshot, ch store.Changes) (ids []string) {
			if ch.All {
				ids = []string{"b", "a"}
			}
			return ids
		}, func(_ *store.Snapshot, id string, now time.Time) (loop.Changes, time.Time) {
			seen = append(seen, fmt.Sprintf("%s at %v", id, now.Sub(start)))
			if id == "a" && now.Sub(start) < 10*time.Second {
				return loop.Changes{}, now.Add(4 * time.Second)
			}
			return loop.Changes{}, time.Time{}
		})
		s.Write(t, func(tx *store.Tx) { tx.Create(&object.Cluster{ID: "c"}) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := loop.Follow(ctx, s, plan); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Follow: got %v", err)
		}
		want := []string{"a at 0s", "b at 0s", "a at 4s", "a at 8s", "a at 12s"}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("units (-want +got):\n%s", diff)
		}
	})
}
