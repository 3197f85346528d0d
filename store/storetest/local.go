// Package storetest is for tests of what stands on the store: a store without
// Raft that works in a synctest bubble, and small real clusters in one.
package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"skep/store"
)

// Local is a [store.Proposer] that applies at once what is proposed, through
// the same encoding and rules as the replicated one. It does no I/O and starts
// no goroutine.
type Local struct {
	*store.Store
	mu    sync.Mutex
	index uint64
}

// New is an empty Local store.
func New(tb testing.TB) *Local {
	tb.Helper()
	return &Local{Store: store.New()}
}

// Propose implements [store.Proposer].
func (l *Local) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if tx.Empty() {
		return l.Snapshot().Index, nil
	}
	b, err := tx.Encode(time.Now())
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	return l.index, l.Apply(l.index, b)
}

// Write is Propose for tests: do fills in a transaction on the present
// state, which must succeed.
func (l *Local) Write(tb testing.TB, do func(tx *store.Tx)) *store.Snapshot {
	tb.Helper()
	tx := store.Begin(l.Snapshot())
	do(tx)
	if _, err := l.Propose(tb.Context(), tx); err != nil {
		tb.Fatalf("write to store: %v", err)
	}
	return l.Snapshot()
}
