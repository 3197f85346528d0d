package engine

import (
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

// journalSize is how many events are kept for clients that ask for past ones.
const journalSize = 1024

// Journal keeps the last events and wakes those who wait for the next. Readers
// have their own place in it: a slow one misses the oldest events and holds up
// nobody.
type Journal struct {
	mu sync.Mutex
	// ring holds the event of sequence n at n modulo its length; guarded by mu.
	ring [journalSize]events.Message
	// next is the sequence of the next event; guarded by mu.
	next uint64
	// news is closed when there is an event after the last; guarded by mu.
	news chan struct{}
	// readers is how many clients follow; guarded by mu.
	readers int
}

// NewJournal is an empty journal.
func NewJournal() *Journal { return &Journal{news: make(chan struct{})} }

// Publish adds an event. Times that are missing are filled in, and the scope
// is the node's unless it says otherwise.
func (j *Journal) Publish(m events.Message) {
	if m.TimeNano == 0 {
		now := time.Now()
		m.Time, m.TimeNano = now.Unix(), now.UnixNano()
	}
	if m.Scope == "" {
		m.Scope = "local"
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ring[j.next%journalSize] = m
	j.next++
	close(j.news)
	j.news = make(chan struct{})
}

// from is the events of sequence seq and later that are still there, the
// sequence after them, and a channel that closes when there are more.
func (j *Journal) from(seq uint64) (ms []events.Message, next uint64, news <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next > journalSize {
		seq = max(seq, j.next-journalSize)
	}
	for ; seq < j.next; seq++ {
		ms = append(ms, j.ring[seq%journalSize])
	}
	return ms, j.next, j.news
}

// end is the sequence of the next event.
func (j *Journal) end() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.next
}

// listen counts a reader in (1) or out (-1).
func (j *Journal) listen(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.readers += n
}

// Readers is how many clients follow the journal.
func (j *Journal) Readers() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.readers
}
