package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"skep/store"
	"skep/store/object"
)

// maxTries bounds how often a change is planned again because somebody else
// changed the same object first.
const maxTries = 20

// changeTimeout bounds how long a change waits to be agreed on.
const changeTimeout = 20 * time.Second

// state is the swarm's state, as new as any change that was acknowledged.
func (a *API) state(ctx context.Context) (*store.Snapshot, error) {
	s, err := a.Swarm.Store(ctx)
	if err != nil {
		return nil, err
	}
	return s.Snapshot(), nil
}

// change plans a transaction on the state and makes it. When somebody else was
// faster the plan is made again: it refuses by itself what the client meant
// for another version.
func (a *API) change(ctx context.Context, plan func(s *store.Snapshot, tx *store.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	p, err := a.Swarm.Store(ctx)
	if err != nil {
		return err
	}
	for range maxTries {
		s := p.Snapshot()
		tx := store.Begin(s)
		if err = plan(s, tx); err != nil {
			return err
		}
		if tx.Empty() {
			return nil
		}
		if _, err = p.Propose(ctx, tx); !errors.Is(err, store.ErrSequence) {
			return err
		}
	}
	return fmt.Errorf("change kept being overtaken: %w", err)
}

// clone is a copy of an object that may be changed.
func clone[T object.Object](o T) T { return o.Clone().(T) }

// shown is the list that f makes of the objects it keeps; never nil, as a list
// that is empty is shown as [].
func shown[T object.Object, S any](all iter.Seq[T], keep func(T) bool, f func(T) S) []S {
	list := []S{}
	for o := range all {
		if keep(o) {
			list = append(list, f(o))
		}
	}
	return list
}

// labels are shown as {} when there are none.
func labels(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
