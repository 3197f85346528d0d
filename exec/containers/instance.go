package containers

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"skep/exec/shim"
)

// instance is one container in memory.
//
//	created ──start──► running ⇄ paused
//	             ▲        │ process ends
//	             │        ▼
//	             ├── restarting (the policy's delay)
//	             └───── exited ──remove──► gone
type instance struct {
	id      string
	created time.Time
	// op is held through start, stop and whatever else takes several steps.
	// What only watches the container never takes it.
	op chan struct{}

	mu     sync.Mutex
	record record
	st     status
	// changed is closed, and replaced, whenever st changes.
	changed chan struct{}
	exits   int
	removed bool
	conn    *shim.Conn    // control connection, while it runs
	proc    *shim.Process // the shim, if this process started it
	// ended is closed when the run that it belongs to is over and told of.
	ended chan struct{}
	// halt ends the delay before a restart.
	halt    chan struct{}
	delay   time.Duration
	waiting map[*attachment]bool // attached, and not started yet
	execs   map[string]bool
	health  *container.Health
}

func newInstance(r record, s status) *instance {
	return &instance{
		id: r.ID, created: r.Created, op: make(chan struct{}, 1), record: r, st: s,
		changed: make(chan struct{}), waiting: map[*attachment]bool{}, execs: map[string]bool{},
	}
}

// lock takes the right to change the container.
func (c *instance) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *instance) unlock() { <-c.op }

func (c *instance) rec() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

func (c *instance) status() status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st
}

// update changes the status and wakes whoever waits for it.
func (c *instance) update(f func(*status)) status {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.st)
	c.wakeLocked()
	return c.st
}

func (c *instance) wakeLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// await blocks until done, which is called with mu held, says so.
func (c *instance) await(ctx context.Context, done func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := done(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// name is how messages to users call the container.
func (c *instance) name() string { return c.rec().Name }
