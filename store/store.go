// Package store holds the replicated objects in memory: typed tables that are
// copied on write, transactions that compare before they set, and a log of what
// changed.
//
// A [Snapshot] is one moment of all tables and costs nothing to take or keep.
// Objects in it are shared and must not be changed: change a Clone and propose
// it in a [Tx]. A transaction names the version of each object that it
// changes; it is applied as a whole or refused with [ErrSequence].
//
// A loop lives by [Store.Since]: a snapshot, the keys of what changed since the
// last one, and a channel that closes when there is more. It never sees events,
// only states; it may fall behind by any amount and then is told to look at
// everything.
//
// The store does not replicate and does not write to disk: store/replica hands
// it the committed commands.
package store

import (
	"context"
	"sort"
	"sync"
	"sync/atomic"
)

// Proposer is the replicated state as its users see it.
type Proposer interface {
	Snapshot() *Snapshot
	Since(after uint64) Changes
	// Propose makes the transaction's changes. When it returns without error,
	// they are durable and Snapshot has them, as version index. After an error
	// they are not made, unless it is one of unknown outcome (store/replica).
	Propose(ctx context.Context, tx *Tx) (index uint64, err error)
}

// Changes is what happened since an index.
type Changes struct {
	Snapshot *Snapshot
	// Keys are the objects that were changed, created or deleted, each once.
	Keys []Key
	// All says that everything may have changed; Keys is then empty.
	All bool
	// News closes when there is something after Snapshot.Index.
	News <-chan struct{}
}

// maxLog is how many changes the log holds before the older half is dropped.
const maxLog = 1 << 15

// Store is the state and the log of its changes. Apply and Restore are called
// by one goroutine; all else by any.
type Store struct {
	now atomic.Pointer[Snapshot]

	mu   sync.Mutex
	log  []entry       // guarded by mu, as is all below; in order of index
	base uint64        // changes up to this index are no longer in log
	news chan struct{} // nil if nobody asked since the last change
}

type entry struct {
	index uint64
	key   Key
}

// New is an empty store.
func New() *Store {
	s := new(Store)
	s.now.Store(empty())
	return s
}

// Snapshot is the present state.
func (s *Store) Snapshot() *Snapshot { return s.now.Load() }

// Since is the present state and what of it changed after an index: that of
// the snapshot which the caller saw last, or 0 if it saw none.
func (s *Store) Since(after uint64) Changes {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Changes{Snapshot: s.now.Load(), News: s.newsLocked()}
	if after < s.base || after == 0 {
		c.All = true
		return c
	}
	news := s.after(after)
	seen := make(map[Key]bool, len(news))
	for _, e := range news {
		if !seen[e.key] {
			seen[e.key] = true
			c.Keys = append(c.Keys, e.key)
		}
	}
	return c
}

// News closes at the next change.
func (s *Store) News() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newsLocked()
}

func (s *Store) newsLocked() <-chan struct{} {
	if s.news == nil {
		s.news = make(chan struct{})
	}
	return s.news
}

// publish makes next the present state.
func (s *Store) publish(next *Snapshot, keys []Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.log = append(s.log, entry{next.Index, k})
	}
	if n := len(s.log); n > maxLog {
		s.base = s.log[n-maxLog/2].index
		s.log = append([]entry(nil), s.after(s.base)...)
	}
	s.now.Store(next)
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}

// after is the part of the log after an index. The caller holds mu.
func (s *Store) after(index uint64) []entry {
	i := sort.Search(len(s.log), func(i int) bool { return s.log[i].index > index })
	return s.log[i:]
}
