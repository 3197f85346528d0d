package storetest

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"skep/store"
	"skep/store/replica"
)

// History is what clients asked of one key after another, and what they were
// told. [History.Check] says whether there is an order of it all, each request
// between its call and its return, in which every answer is right.
//
// A request that was certainly not carried out is left out. One that may have
// been may take effect at any time after its call.
type History struct {
	mu    sync.Mutex
	clock int64
	ops   []porcupine.Operation
	// versions are the indexes that values were seen at: a value is written once.
	versions map[string]uint64
	bad      error
}

// Request is what a client asks: to read a key, to create it (From is ""), to
// change its value, or to delete it (To is "").
type Request struct {
	Client   string
	Key      string
	Read     bool
	From, To string
	Start    time.Time
}

// Answer is what it was told.
type Answer struct {
	Value   string // that was read; "" if there is none
	Refused bool   // the state was not the one that the request is for
	Unknown bool
	End     time.Time
}

// NewHistory is an empty history.
func NewHistory() *History { return &History{versions: map[string]uint64{}} }

// Call is a request that is under way.
type Call struct {
	h   *History
	req Request
	at  int64
}

// Call notes that a request begins.
func (h *History) Call(req Request) *Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	req.Start = time.Now()
	return &Call{h, req, h.clock}
}

// Wrote notes the end of a write.
func (c *Call) Wrote(index uint64, err error) {
	switch {
	case err == nil:
		c.end(Answer{})
		if c.req.To != "" {
			c.h.Saw(c.req.To, index)
		}
	case errors.Is(err, replica.ErrUnknownOutcome):
		c.end(Answer{Unknown: true})
	case errors.Is(err, store.ErrSequence), exists(err):
		c.end(Answer{Refused: true})
	}
}

// Was notes the end of a read.
func (c *Call) Was(value string, index uint64) {
	c.end(Answer{Value: value})
	if value != "" {
		c.h.Saw(value, index)
	}
}

func (c *Call) end(a Answer) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.clock++
	ret := c.h.clock
	if a.Unknown {
		ret = math.MaxInt64
	}
	a.End = time.Now()
	c.h.ops = append(c.h.ops, porcupine.Operation{Input: c.req, Call: c.at, Output: a, Return: ret})
}

// Saw notes at which version a value is; it never changes.
func (h *History) Saw(value string, index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if was, ok := h.versions[value]; ok && was != index && h.bad == nil {
		h.bad = fmt.Errorf("value %q is of version %d and of %d", value, was, index)
	}
	h.versions[value] = index
}

// Len is how many requests were answered.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// patience is how long checking may take; what is not decided then is no error.
const patience = 30 * time.Second

// Check is nil if the history is linearizable. It must be called outside the
// bubble, or when nothing runs in it.
func (h *History) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bad != nil {
		return h.bad
	}
	if porcupine.CheckOperationsTimeout(model(), h.ops, patience) == porcupine.Illegal {
		return errors.New("the history is not linearizable" + h.culprit())
	}
	return nil
}

// culprit names the first key whose history is not.
func (h *History) culprit() string {
	for _, part := range model().Partition(h.ops) {
		if porcupine.CheckOperationsTimeout(model(), part, patience) == porcupine.Illegal {
			return ": key " + part[0].Input.(Request).Key
		}
	}
	return ""
}

// Print writes the history, in the order of the answers.
func (h *History) Print(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		fmt.Fprintln(w, describe(op))
	}
}

func describe(op porcupine.Operation) string {
	in, out := op.Input.(Request), op.Output.(Answer)
	text := fmt.Sprintf("%s %s [%d %d] %s %s: %s", in.Start.Format(clockFormat), out.End.Format(clockFormat), op.Call, op.Return, in.Client, in.Key, doing(in, out))
	return text
}

func doing(in Request, out Answer) string {
	what := fmt.Sprintf("%q → %q", in.From, in.To)
	switch {
	case in.Read:
		return fmt.Sprintf("is %q", out.Value)
	case out.Refused:
		return what + " refused"
	case out.Unknown:
		return what + " unknown"
	default:
		return what
	}
}

// model is one object: its value, "" if it is not there.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Partition: func(ops []porcupine.Operation) (parts [][]porcupine.Operation) {
			at := map[string]int{}
			for _, op := range ops {
				k := op.Input.(Request).Key
				i, ok := at[k]
				if !ok {
					i = len(parts)
					at[k], parts = i, append(parts, nil)
				}
				parts[i] = append(parts[i], op)
			}
			return parts
		},
		Step: func(state, input, output any) (bool, any) {
			in, out := input.(Request), output.(Answer)
			switch {
			case in.Read:
				return state == out.Value, state
			case out.Refused:
				return state != in.From, state
			case state == in.From:
				return true, in.To
			default:
				return out.Unknown, state
			}
		},
		DescribeOperation: func(in, out any) string { return doing(in.(Request), out.(Answer)) },
	}
}
