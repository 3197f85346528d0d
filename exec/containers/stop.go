package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

// defaultGrace is how long a container may take to stop.
const defaultGrace = 10 * time.Second

// killGrace is how long the kernel may take to end what was killed.
const killGrace = 30 * time.Second

// Stop asks a container to end, and kills it when it does not.
func (e *Engine) Stop(ctx context.Context, ref, sig string, timeout *time.Duration) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if !c.status().Running {
		return object.Errorf(errdefs.ErrNotModified, "container %s is already stopped", c.id)
	}
	return e.stop(ctx, c, sig, timeout)
}

// stop ends a running container. The caller holds op.
func (e *Engine) stop(ctx context.Context, c *instance, sig string, timeout *time.Duration) error {
	r := c.rec()
	s, err := parseSignal(cmp.Or(sig, r.Config.StopSignal, "SIGTERM"))
	if err != nil {
		return err
	}
	c.update(func(s *status) { s.Stopped = true })
	if c.status().Restarting {
		e.halt(ctx, c)
		return nil
	}
	e.drain(ctx, c)
	if err = e.signal(c, s); err != nil {
		return err
	}
	if err = e.thaw(c); err != nil {
		return err
	}
	grace := r.grace()
	if timeout != nil {
		grace = *timeout
	}
	ended, err := e.waitEnd(ctx, c, grace)
	if err == nil && !ended {
		if err = e.signal(c, unix.SIGKILL); err != nil {
			return err
		}
		err = e.waitKilled(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("cannot stop container %s: %w", c.id, err)
	}
	e.tell(c, events.ActionStop)
	return nil
}

func (r *record) grace() time.Duration {
	switch {
	case r.Extra.StopGrace > 0:
		return r.Extra.StopGrace
	case r.Config.StopTimeout != nil:
		return time.Duration(*r.Config.StopTimeout) * time.Second
	}
	return defaultGrace
}

// waitEnd waits for the end of the container and reports whether it came in
// time; a negative grace waits for ever. The error is that this node stops.
func (e *Engine) waitEnd(ctx context.Context, c *instance, grace time.Duration) (ended bool, err error) {
	// A stop goes on to its end when the client leaves.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	if grace >= 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, grace)
		defer done()
	}
	// The goroutine ends with ctx. Nobody would tell of the container's end
	// after Run.
	go func() {
		select {
		case <-e.stopped:
			cancel(stopping())
		case <-ctx.Done():
		}
	}()
	err = c.await(ctx, func() bool { return !c.st.Running })
	if errors.Is(err, context.DeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// waitKilled waits for the end of a container that was killed.
func (e *Engine) waitKilled(ctx context.Context, c *instance) error {
	ended, err := e.waitEnd(ctx, c, killGrace)
	if err == nil && !ended {
		err = fmt.Errorf("it was killed and did not end in %v", killGrace)
	}
	return err
}

func stopping() error { return object.Errorf(errdefs.ErrUnavailable, "this node is shutting down") }

func parseSignal(text string) (syscall.Signal, error) {
	s, err := signal.ParseSignal(text)
	if err != nil {
		return 0, invalid("%w", err)
	}
	return s, nil
}

// signal sends a signal to the container's first process.
func (e *Engine) signal(c *instance, s syscall.Signal) error {
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err == nil {
		err = box.Signal(s)
	}
	if err != nil && (errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, libcontainer.ErrNotExist) || errors.Is(err, os.ErrProcessDone)) {
		return nil // it just ended by itself
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	e.tell(c, events.ActionKill, "signal", strconv.Itoa(int(s)))
	return nil
}

// thaw lets a paused container notice that it is to end.
func (e *Engine) thaw(c *instance) error {
	if !c.status().Paused {
		return nil
	}
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err == nil {
		err = box.Resume()
	}
	if err != nil && !errors.Is(err, libcontainer.ErrNotPaused) {
		return fmt.Errorf("unpause container %s: %w", c.id, err)
	}
	c.update(func(s *status) { s.Paused = false })
	return nil
}

// Restart stops a container if it runs, and starts it.
func (e *Engine) Restart(ctx context.Context, ref, sig string, timeout *time.Duration) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err = c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	ctx = context.WithoutCancel(ctx)
	// It is not to be removed in between.
	c.mu.Lock()
	auto := c.record.Host.AutoRemove
	c.record.Host.AutoRemove = false
	c.mu.Unlock()
	if c.status().Running {
		err = e.stop(ctx, c, sig, timeout)
	}
	c.mu.Lock()
	c.record.Host.AutoRemove = auto
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.start(ctx, c); err != nil {
		return err
	}
	e.tell(c, events.ActionRestart)
	return nil
}

// Kill sends a signal, SIGKILL unless another is named.
func (e *Engine) Kill(ctx context.Context, ref, sig string) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	s, err := parseSignal(cmp.Or(sig, "SIGKILL"))
	if err != nil {
		return err
	}
	st := c.status()
	if !st.Running || st.Restarting {
		return object.Errorf(errdefs.ErrConflict, "cannot kill container: %s: container %s is not running", ref, c.id)
	}
	stops := s == unix.SIGKILL
	if own, err := parseSignal(cmp.Or(c.rec().Config.StopSignal, "SIGTERM")); err == nil && s == own {
		stops = true
	}
	if stops {
		c.update(func(s *status) { s.Stopped = true })
	}
	if err := e.signal(c, s); err != nil {
		return err
	}
	if s != unix.SIGKILL {
		return nil
	}
	if err := e.thaw(c); err != nil {
		return err
	}
	if err := e.waitKilled(ctx, c); err != nil {
		return fmt.Errorf("cannot kill container %s: %w", c.id, err)
	}
	return nil
}
