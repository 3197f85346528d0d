package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"

	"skep/store"
	"skep/store/object"
)

// maxTries bounds how often a change is planned again because somebody else
// changed the same object first.
const maxTries = 20

// changeTimeout bounds how long a change waits to be agreed on.
const changeTimeout = 20 * time.Second

// readPatience is how long a read waits for a leader before it makes do with
// what this node has.
const readPatience = 3 * time.Second

// state is the swarm's state, as new as any change that was acknowledged. While
// no manager leads, those who only read get what this node has, which may be
// old, and the reply says so.
func (a *API) state(ctx context.Context) (*store.Snapshot, error) {
	reply, reads := ctx.Value(readKey{}).(http.ResponseWriter)
	if !reads {
		s, err := a.Swarm.Store(ctx)
		if err != nil {
			return nil, err
		}
		return s.Snapshot(), nil
	}
	rctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	s, err := a.Swarm.Store(rctx)
	if err == nil {
		return s.Snapshot(), nil
	}
	old, none := a.Swarm.Replica()
	if none != nil {
		return nil, err
	}
	a.Logger.WarnContext(ctx, "reading what may be old", "err", err)
	reply.Header().Set(staleHeader, `110 - "this manager knows of no leader: what it tells may be old"`)
	return old, nil
}

// staleHeader marks a reply that may be old (RFC 7234, 5.5.1).
const staleHeader = "Warning"

// readKey is the key of the reply in the context of a request that only reads.
type readKey struct{}

// stale reports whether the reply to ctx's request is made of what may be old.
func stale(ctx context.Context) bool {
	reply, ok := ctx.Value(readKey{}).(http.ResponseWriter)
	return ok && reply.Header().Get(staleHeader) != ""
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
