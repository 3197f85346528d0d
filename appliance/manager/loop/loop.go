// Package loop is what the manager's loops have in common: look at the state,
// decide, write conditionally, wait for news.
//
// A loop's decision is a pure function from a snapshot, what changed and the
// time to [Changes]. [Follow] calls it whenever there is news or the time it
// asked for has come, and writes what it decided. If somebody else wrote an
// object first, nothing of that write happens and the decision is made again
// from the newer state; so a decision must depend on nothing but the state.
// The package does not promise that every state in between is seen.
package loop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"skep/store"
	"skep/store/object"
)

// batch is the most objects that one transaction writes: enough to share the
// cost of a commit, few enough that a conflict does not throw much away.
const batch = 512

// Changes is what a loop decided to write.
type Changes struct {
	// Create holds new objects. A task without an ID is given one.
	Create []object.Object
	// Update and Delete hold copies with the version they were decided on.
	Update, Delete []object.Object
	// Also are changes that the store has words of its own for; each is
	// written by itself.
	Also []func(tx *store.Tx)
}

// Empty reports whether there is nothing to write.
func (c *Changes) Empty() bool { return len(c.Create)+len(c.Update)+len(c.Delete)+len(c.Also) == 0 }

// Add appends other to c.
func (c *Changes) Add(other Changes) {
	c.Create = append(c.Create, other.Create...)
	c.Update = append(c.Update, other.Update...)
	c.Delete = append(c.Delete, other.Delete...)
	c.Also = append(c.Also, other.Also...)
}

// Plan decides on the changes for the snapshot in ch. prev is the snapshot of
// the last decision that was written, nil at first; then ch.All is set. If next
// is not zero, the plan is made again at that time at the latest.
type Plan func(prev *store.Snapshot, ch store.Changes, now time.Time) (c Changes, next time.Time)

// Follow runs plan until ctx ends or the store fails.
func Follow(ctx context.Context, s store.Proposer, plan Plan) error {
	var prev *store.Snapshot
	var after uint64
	for size := batch; ; {
		ch := s.Since(after)
		ch.All = ch.All || prev == nil
		changes, next := plan(prev, ch, time.Now())
		err := write(ctx, s, ch.Snapshot, changes, size)
		if errors.Is(err, store.ErrSequence) || (errdefs.IsInvalidArgument(err) && size > 1) {
			// The smaller the write, the less it is likely to meet another one,
			// or to be more than a command can hold.
			size = max(1, size/4)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		if err != nil {
			return err
		}
		size = batch
		prev, after = ch.Snapshot, ch.Snapshot.Index
		if err := Wait(ctx, ch.News, next); err != nil {
			return err
		}
	}
}

// Wait returns when there is news, at the time at (never, if it is zero) or,
// with its error, when ctx ends.
func Wait(ctx context.Context, news <-chan struct{}, at time.Time) error {
	var due <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-news:
	case <-due:
	}
	return nil
}

// write proposes the changes in transactions of at most size objects. What is
// created goes with what is changed for it, as far as a transaction reaches.
func write(ctx context.Context, s store.Proposer, snap *store.Snapshot, c Changes, size int) error {
	for i, n := 0, max(len(c.Create), len(c.Update), len(c.Delete)); i < n; i += size {
		tx := store.Begin(snap)
		for _, o := range window(c.Update, i, size) {
			tx.Update(o)
		}
		for _, o := range window(c.Create, i, size) {
			if t, ok := o.(*object.Task); ok && t.ID == "" {
				t.ID = object.NewID()
			}
			tx.Create(o)
		}
		for _, o := range window(c.Delete, i, size) {
			tx.Delete(o)
		}
		if _, err := s.Propose(ctx, tx); err != nil {
			return fmt.Errorf("write changes: %w", err)
		}
	}
	for _, do := range c.Also {
		tx := store.Begin(snap)
		do(tx)
		if _, err := s.Propose(ctx, tx); err != nil {
			return fmt.Errorf("write changes: %w", err)
		}
	}
	return nil
}

func window(list []object.Object, from, size int) []object.Object {
	return list[min(from, len(list)):min(from+size, len(list))]
}

// Earliest is the earlier of two times, of which zero is none.
func Earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
