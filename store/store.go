// Package store holds the replicated objects in memory.
package store

import "context"

// Snapshot is the state at one moment.
type Snapshot struct{ Index uint64 }

// Tx gathers changes to a snapshot.
type Tx struct{}

// Changes is what happened since an index.
type Changes struct{ Snapshot *Snapshot }

// Proposer is the replicated state as its users see it.
type Proposer interface {
	Snapshot() *Snapshot
	Since(after uint64) Changes
	Propose(ctx context.Context, tx *Tx) (index uint64, err error)
}
