package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runc/libcontainer"

	"skep/exec/shim"
)

// load reads the containers on disk and finds out what each of them does.
// What belongs to none of them is removed.
func (e *Engine) load(ctx context.Context) error {
	entries, err := os.ReadDir(e.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		var r record
		if err := e.read(d.Name(), recordFile, &r); err != nil {
			if !gone(err) {
				return err // a wrong key must not cost the containers
			}
			// Its creation was not finished.
			if err := os.RemoveAll(e.dir(d.Name())); err != nil {
				return err
			}
			continue
		}
		s, err := e.readStatus(r.ID)
		if err != nil {
			e.cfg.Logger.WarnContext(ctx, "found no state of a container", "container", r.ID[:12], "err", err)
		}
		for _, m := range r.Mounts {
			if m.Volume == "" {
				continue
			}
			if err := e.cfg.Volumes.Hold(m.Volume, r.ID); err != nil {
				e.cfg.Logger.WarnContext(ctx, "missed a container's volume", "container", r.ID[:12], "err", err)
			}
		}
		e.byID[r.ID], e.names[r.Name] = newInstance(r, s), r.ID
	}
	var running []string
	e.found = e.all()
	for _, c := range e.found {
		if e.adopt(ctx, c) {
			running = append(running, c.id)
		}
	}
	if err := e.cfg.Networks.Retain(ctx, running); err != nil {
		return err
	}
	e.retainGuests(running)
	return e.removeStrays(ctx)
}

// adopt connects to a container's shim, if there is one.
func (e *Engine) adopt(ctx context.Context, c *instance) bool {
	run := e.runDir(c.id)
	conn, err := shim.Dial(run)
	if err != nil {
		return false // what is left of it is looked at by resume
	}
	pid, err := e.awaitPID(ctx, c.id)
	if err != nil {
		conn.Close()
		return false
	}
	c.conn, c.ended = conn, make(chan struct{})
	c.st.Running, c.st.Restarting, c.st.Pid = true, false, pid
	if box, err := libcontainer.Load(e.stateRoot(), c.id); err == nil {
		st, err := box.Status()
		c.st.Paused = err == nil && st == libcontainer.Paused
		if state, err := box.State(); err == nil && c.st.StartedAt.Before(state.Created) {
			c.st.StartedAt = state.Created // the node stopped before it noted the start
		}
	}
	return true
}

// awaitPID waits for a creator that outlived the node that started it.
func (e *Engine) awaitPID(ctx context.Context, id string) (int, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 250 {
		pid, err := shim.ReadPID(e.runDir(id))
		if err == nil {
			return pid, nil
		}
		if _, err := shim.ReadExit(e.runDir(id)); err == nil || errors.Is(err, shim.ErrNotCreated) {
			return 0, shim.ErrNotCreated
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	return 0, fmt.Errorf("container %s was not created in time", id[:12])
}

// resume goes on with a container where an earlier run of the node left it.
func (e *Engine) resume(ctx context.Context, c *instance) {
	c.mu.Lock()
	conn, s := c.conn, c.st
	c.mu.Unlock()
	switch {
	case conn != nil:
		e.attend(ctx, c)
	case s.Running && !s.Restarting:
		e.ended(ctx, c)
	default:
		e.settle(ctx, c)
	}
}

// settle cleans up after a container that does not run, and starts it if it
// should.
func (e *Engine) settle(ctx context.Context, c *instance) {
	if c.lock(ctx) != nil {
		return
	}
	defer c.unlock()
	s := c.status()
	if s.Running && !s.Restarting {
		return // a client was quicker
	}
	policy := c.rec().Host.RestartPolicy
	e.clean(ctx, c.id)
	if always := policy.IsAlways() && !s.StartedAt.IsZero(); !s.Restarting && !always {
		return
	}
	if err := e.start(ctx, c); err != nil && ctx.Err() == nil {
		e.cfg.Logger.WarnContext(ctx, "started no container", "container", c.id[:12], "err", err)
		e.retry(ctx, c, err)
	}
}

// removeStrays removes what belongs to containers that are not known.
func (e *Engine) removeStrays(ctx context.Context) error {
	for _, dir := range []string{e.runDir(""), e.stateRoot()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, d := range entries {
			if e.byID[d.Name()] != nil || len(d.Name()) != 64 {
				continue
			}
			e.kill(ctx, d.Name())
			e.clean(ctx, d.Name())
			if err := os.RemoveAll(e.runDir(d.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
