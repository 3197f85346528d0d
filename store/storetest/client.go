package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"

	"skep/store"
	"skep/store/object"
)

// Server is a manager as its clients see it.
type Server interface {
	store.Proposer
	// Read is the state with all that was acknowledged before the call.
	Read(ctx context.Context) (*store.Snapshot, error)
}

// Client creates, reads, changes and deletes objects, one request after
// another, wherever it is let, and writes down what it is told.
type Client struct {
	Name    string
	Rand    *rand.Rand
	History *History
	// Pick is a server, or nil if there is none.
	Pick func() Server

	seen  map[string]*object.Config // as last read, by key; perhaps nil
	count int
	start time.Time
}

// keep is how long a key is used. The longer, the more there is to check.
const keep = 20 * time.Second

// Run asks until ctx ends.
func (c *Client) Run(ctx context.Context) {
	c.seen, c.start = map[string]*object.Config{}, time.Now()
	for ctx.Err() == nil {
		if s := c.Pick(); s != nil {
			c.request(ctx, s)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(1+c.Rand.IntN(150)) * time.Millisecond):
		}
	}
}

func (c *Client) request(ctx context.Context, s Server) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+c.Rand.IntN(8))*time.Second)
	defer cancel()
	key := fmt.Sprintf("key-%d-%d", time.Since(c.start)/keep, c.Rand.IntN(3))
	if c.Rand.IntN(2) == 0 {
		c.read(ctx, s, key)
		return
	}
	c.count++
	req := Request{Client: c.Name, Key: key, To: fmt.Sprint(c.Name, "-", c.count)}
	tx := store.Begin(s.Snapshot())
	was := c.seen[key]
	next := new(object.Config)
	next.ID = key
	if was != nil {
		req.From = string(was.Spec.Data)
		next = was.Clone().(*object.Config)
	}
	next.Spec.Name, next.Spec.Data = key, []byte(req.To)
	switch {
	case was == nil:
		tx.Create(next)
	case c.Rand.IntN(8) == 0:
		req.To = ""
		tx.Delete(was)
	default:
		tx.Update(next)
	}
	call := c.History.Call(req)
	index, err := s.Propose(ctx, tx)
	call.Wrote(index, err)
	if err == nil && req.To != "" {
		next.Version.Index = index
		c.seen[key] = next
	}
	if err == nil && req.To == "" {
		delete(c.seen, key)
	}
}

func (c *Client) read(ctx context.Context, s Server, key string) {
	call := c.History.Call(Request{Client: c.Name, Key: key, Read: true})
	snap, err := s.Read(ctx)
	if err != nil {
		return
	}
	o, ok := snap.Configs.Get(key)
	if !ok {
		delete(c.seen, key)
		call.Was("", 0)
		return
	}
	c.seen[key] = o
	call.Was(string(o.Spec.Data), o.Version.Index)
}

func exists(err error) bool { return errdefs.IsAlreadyExists(err) }
