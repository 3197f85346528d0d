package containers

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"skep/exec/shim"
	"skep/store/object"
)

// lostCode is the exit code of a container whose end nobody saw.
const lostCode = 255

// attend stays with a running container until it ends, and then does what its
// policy says. When ctx ends it leaves; the container goes on.
func (e *Engine) attend(ctx context.Context, c *instance) {
	c.mu.Lock()
	conn, proc, ended := c.conn, c.proc, c.ended
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	health, stopHealth := context.WithCancel(ctx)
	healthDone := make(chan struct{})
	go func() { // ends with stopHealth, awaited below
		defer close(healthDone)
		e.checkHealth(health, c)
	}()

	kind, _, err := conn.Read()
	for err == nil && kind != shim.Ended {
		kind, _, err = conn.Read()
	}
	stopHealth()
	<-healthDone
	if ctx.Err() != nil {
		return
	}
	e.ended(ctx, c)
	close(ended)
	// A slow client may keep the shim a little longer.
	for err == nil {
		_, _, err = conn.Read()
	}
	conn.Close()
	if proc != nil && ctx.Err() == nil {
		proc.Reap()
	}
}

// ended takes note of the end of a container's process.
func (e *Engine) ended(ctx context.Context, c *instance) {
	exit, err := shim.ReadExit(e.runDir(c.id))
	text := ""
	if err != nil {
		// The shim was killed. Its container has no log and no parent.
		text = "exit status lost: the container's shim is gone"
		exit = shim.Exit{Code: lostCode, Time: time.Now().UTC()}
		e.kill(ctx, c.id)
	}
	oom := oomKilled(e.stateRoot(), c.id)
	e.clean(ctx, c.id)
	e.endExecs(c)
	// Invariant: the container runs, for everybody else, until its end is
	// written down and told.
	c.mu.Lock()
	again, wait := c.restartsLocked(exit)
	next := c.st
	c.mu.Unlock()
	next.Running, next.Restarting, next.Paused = again, again, false
	next.Pid, next.ExitCode, next.FinishedAt = 0, exit.Code, exit.Time
	next.OOMKilled, next.Error = oom, text
	if again {
		next.Restarts++
	}
	if err := e.saveState(c.id, &next); err != nil {
		e.cfg.Logger.WarnContext(ctx, "kept no note of an end", "container", c.id[:12], "err", err)
	}
	if oom {
		e.tell(c, events.ActionOOM)
	}
	e.tellDie(c, next)
	c.mu.Lock()
	// Who stopped it meanwhile does not want it back.
	if next.Stopped = c.st.Stopped; next.Stopped {
		again, next.Running, next.Restarting = false, false, false
	}
	halt := make(chan struct{})
	c.st, c.halt, c.conn, c.proc = next, halt, nil, nil
	c.exits++
	c.wakeLocked()
	c.mu.Unlock()
	switch {
	case again:
		if err := e.background(ctx, func(ctx context.Context) { e.restartLater(ctx, c, halt, wait) }); err != nil {
			return
		}
	case c.rec().Host.AutoRemove:
		// A goroutine of its own: whoever stops the container holds op, and
		// waits for its end.
		_ = e.background(ctx, func(ctx context.Context) { e.autoRemove(ctx, c) }) // only at shutdown
	}
}

func (e *Engine) autoRemove(ctx context.Context, c *instance) {
	if c.lock(ctx) != nil {
		return
	}
	defer c.unlock()
	if err := e.remove(ctx, c, true); err != nil {
		e.cfg.Logger.ErrorContext(ctx, "left a container that was to go", "container", c.id[:12], "err", err)
	}
}

// restartsLocked says whether the policy wants the container to run again, and
// after which delay: it doubles while the container ends soon after each start.
func (c *instance) restartsLocked(exit shim.Exit) (bool, time.Duration) {
	if c.st.Stopped || !wantsRestart(c.record.Host.RestartPolicy, c.st.Restarts, exit.Code) {
		return false, 0
	}
	if exit.Time.Sub(c.st.StartedAt) > 10*time.Second || c.delay == 0 {
		c.delay = 50 * time.Millisecond
	}
	c.delay = min(2*c.delay, time.Minute)
	return true, c.delay
}

func wantsRestart(p container.RestartPolicy, restarts, code int) bool {
	switch {
	case p.IsAlways(), p.IsUnlessStopped():
		return true
	case p.IsOnFailure():
		return code != 0 && (p.MaximumRetryCount == 0 || restarts < p.MaximumRetryCount)
	}
	return false
}

func (e *Engine) restartLater(ctx context.Context, c *instance, halt chan struct{}, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-halt:
		return
	case <-ctx.Done():
		return
	}
	if c.lock(ctx) != nil {
		return
	}
	defer c.unlock()
	if !c.status().Restarting {
		return // stopped or started meanwhile
	}
	if err := e.start(ctx, c); err != nil && ctx.Err() == nil {
		e.cfg.Logger.WarnContext(ctx, "restarted no container", "container", c.id[:12], "err", err)
		e.retry(ctx, c, err)
	}
}

// retryPause is how long a restart waits for managers that do not answer.
const retryPause = 5 * time.Second

// retry puts a restart off that failed because no manager gave the container its
// place on a network yet, as when a machine starts. The caller holds op.
func (e *Engine) retry(ctx context.Context, c *instance, cause error) {
	if !errdefs.IsUnavailable(cause) && !errdefs.IsResourceExhausted(cause) && !errors.Is(cause, object.ErrTemporary) {
		return
	}
	halt := make(chan struct{})
	c.mu.Lock()
	c.st.Running, c.st.Restarting = true, true
	c.halt = halt
	c.mu.Unlock()
	_ = e.background(ctx, func(ctx context.Context) { e.restartLater(ctx, c, halt, retryPause) }) // only at shutdown
}

// halt gives up a restart that is due.
func (e *Engine) halt(ctx context.Context, c *instance) {
	c.mu.Lock()
	if c.halt != nil {
		close(c.halt)
		c.halt = nil
	}
	c.mu.Unlock()
	s := c.update(func(s *status) {
		if s.Restarting {
			s.Running, s.Restarting = false, false
		}
	})
	if err := e.saveState(c.id, &s); err != nil {
		e.cfg.Logger.WarnContext(ctx, "kept no note of a halt", "container", c.id[:12], "err", err)
	}
}

// kill ends all of a container's processes, whoever is their parent.
func (e *Engine) kill(ctx context.Context, id string) {
	box, err := libcontainer.Load(e.stateRoot(), id)
	if err != nil {
		return
	}
	if err := box.Signal(unix.SIGKILL); err != nil {
		e.cfg.Logger.DebugContext(ctx, "killed nothing", "container", id[:12], "err", err)
	}
	wait := time.NewTicker(20 * time.Millisecond)
	defer wait.Stop()
	for range 250 {
		if st, err := box.Status(); err != nil || st == libcontainer.Stopped {
			return
		}
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		}
	}
}

// clean removes what a run left in the kernel: cgroups, runtime state,
// network. It is called for what has ended, or never began; twice is fine.
func (e *Engine) clean(ctx context.Context, id string) {
	box, err := libcontainer.Load(e.stateRoot(), id)
	if err == nil {
		err = box.Destroy()
	}
	if err != nil {
		// A creator that was killed leaves a cgroup, and state that says nothing.
		err = errors.Join(e.removeCgroup(id), os.RemoveAll(filepath.Join(e.stateRoot(), id)))
	}
	if _, own := e.cfg.Networks.Attachment(id); own {
		err = errors.Join(err, e.cfg.Networks.Disconnect(context.WithoutCancel(ctx), id))
	}
	e.releaseGuests(id)
	if err != nil {
		e.cfg.Logger.WarnContext(ctx, "left something of a container", "container", id[:12], "err", err)
	}
}

func (e *Engine) removeCgroup(id string) error {
	m, err := manager.New(&cgroups.Cgroup{Path: e.cgroup(id), Resources: &cgroups.Resources{}})
	if err != nil {
		return err
	}
	if !m.Exists() {
		return nil
	}
	return m.Destroy()
}

// oomKilled asks the container's cgroup, which must still be there.
func oomKilled(root, id string) bool {
	box, err := libcontainer.Load(root, id)
	if err != nil {
		return false
	}
	st, err := box.State()
	if err != nil {
		return false
	}
	dir, file := st.CgroupPaths["memory"], "memory.oom_control"
	if dir == "" {
		dir, file = st.CgroupPaths[""], "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
			n, err := strconv.Atoi(f[1])
			return err == nil && n > 0
		}
	}
	return false
}

func (c *instance) isRemoved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
