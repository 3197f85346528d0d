package containers

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

// What a health check is when it does not say.
const (
	healthInterval = 30 * time.Second
	healthTimeout  = 30 * time.Second
	healthRetries  = 3
	healthStart    = 5 * time.Second // interval within the start period

	healthLog    = 5    // results kept
	healthOutput = 4096 // bytes kept of each
)

// probe is the command line of the health check; nil means that there is none.
func probe(cfg *container.Config) []string {
	h := cfg.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := cfg.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1:]...)
	}
	return nil
}

// checkHealth runs the container's health check until ctx ends.
func (e *Engine) checkHealth(ctx context.Context, c *instance) {
	r := c.rec()
	cmd := probe(&r.Config)
	if len(cmd) == 0 {
		return
	}
	h := *r.Config.Healthcheck
	started := c.status().StartedAt
	c.mu.Lock()
	c.health = &container.Health{Status: container.Starting}
	c.wakeLocked()
	c.mu.Unlock()
	for {
		wait := cmp.Or(h.Interval, healthInterval)
		starting := time.Since(started) < h.StartPeriod
		if starting && c.healthStatus() == container.Starting {
			wait = min(wait, cmp.Or(h.StartInterval, healthStart))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if c.status().Paused {
			continue
		}
		begin := time.Now()
		res := e.probeOnce(ctx, c, cmd, cmp.Or(h.Timeout, healthTimeout))
		if ctx.Err() != nil {
			return
		}
		was, is := c.noteHealth(res, cmp.Or(h.Retries, healthRetries), begin.Sub(started) < h.StartPeriod)
		if was != is {
			e.tell(c, events.Action("health_status: "+string(is)))
		}
	}
}

func (c *instance) healthStatus() container.HealthStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health == nil {
		return container.NoHealthcheck
	}
	return c.health.Status
}

// noteHealth adds a result. A failure within the start period does not count,
// unless a check has succeeded before.
func (c *instance) noteHealth(res *container.HealthcheckResult, retries int, starting bool) (was, is container.HealthStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := *c.health
	was = h.Status
	h.Log = append(slices.Clone(h.Log), res)
	h.Log = h.Log[max(0, len(h.Log)-healthLog):]
	switch {
	case res.ExitCode == 0:
		h.FailingStreak, h.Status = 0, container.Healthy
	case starting && h.Status == container.Starting:
	default:
		if h.FailingStreak++; h.FailingStreak >= retries {
			h.Status = container.Unhealthy
		}
	}
	c.health = &h
	c.wakeLocked()
	return was, h.Status
}

// probeOnce executes the health check.
func (e *Engine) probeOnce(ctx context.Context, c *instance, cmd []string, timeout time.Duration) *container.HealthcheckResult {
	res := &container.HealthcheckResult{Start: time.Now()}
	x := &execution{id: newID(), box: c, quiet: true, req: container.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true}}
	out := &limited{max: healthOutput}
	run, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	err := e.runExec(run, x, [2]uint{}, object.Streams{Stdout: out, Stderr: out}, false)
	res.End, res.Output = time.Now(), out.buf.String()
	x.mu.Lock()
	code, pid := x.code, x.pid
	x.mu.Unlock()
	switch {
	case errors.Is(run.Err(), context.DeadlineExceeded):
		res.ExitCode = -1
		res.Output = "Health check exceeded timeout (" + timeout.String() + ")"
		e.killIn(c, pid)
	case code != nil:
		res.ExitCode = *code
		if err != nil {
			res.Output = err.Error()
		}
	default:
		res.ExitCode, res.Output = -1, "health check was not run"
		if err != nil {
			res.Output = err.Error()
		}
	}
	return res
}

// killIn kills a process, if it still is one of the container's.
func (e *Engine) killIn(c *instance, pid int) {
	if pid <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it ended
	}
	defer unix.Close(fd)
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err != nil {
		return
	}
	if pids, err := box.Processes(); err != nil || !slices.Contains(pids, pid) {
		return
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		e.cfg.Logger.Debug("killed no health check", "container", c.id[:12], "pid", strconv.Itoa(pid), "err", err)
	}
}

// limited keeps the beginning of what is written to it.
type limited struct {
	buf bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), l.max-l.buf.Len())])
	return len(p), nil
}
