package images

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
)

// teller passes progress on, one message at a time.
type teller struct {
	mu sync.Mutex
	f  func(jsonstream.Message)
}

func newTeller(f func(jsonstream.Message)) *teller {
	if f == nil {
		f = func(jsonstream.Message) {}
	}
	return &teller{f: f}
}

func (t *teller) tell(m jsonstream.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.f(m)
}

func (t *teller) status(id, status string) {
	t.tell(jsonstream.Message{ID: id, Status: status})
}

// line is output that is not about a layer.
func (t *teller) line(text string) {
	t.tell(jsonstream.Message{Stream: text + "\n"})
}

// aux is what programs read.
func (t *teller) aux(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	raw := json.RawMessage(b)
	t.tell(jsonstream.Message{Aux: &raw})
}

// bar tells how far one layer is, ten times a second at most.
type bar struct {
	t       *teller
	id      string
	status  string
	last    string // told at the end, if not empty
	total   int64
	mu      sync.Mutex
	current int64
	told    time.Time
}

func (t *teller) bar(id, status string, total int64) *bar {
	return &bar{t: t, id: id, status: status, total: total}
}

// step adds bytes.
func (b *bar) step(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current += n
	now := time.Now()
	end := b.current >= b.total
	if !end && now.Sub(b.told) < 100*time.Millisecond {
		return
	}
	b.told = now
	b.t.tell(jsonstream.Message{
		ID: b.id, Status: b.status, Progress: &jsonstream.Progress{Current: b.current, Total: b.total},
	})
	if end && b.last != "" {
		b.t.status(b.id, b.last)
	}
}
