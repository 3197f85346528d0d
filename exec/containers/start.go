package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"skep/exec/doors"
	"skep/exec/runspec"
	"skep/exec/shim"
	"skep/store/object"
)

// startTimeout bounds what a creator may take.
const startTimeout = 2 * time.Minute

// Start starts a container that is not running.
func (e *Engine) Start(ctx context.Context, ref string) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	s := c.status()
	switch {
	case s.Paused:
		return object.Errorf(errdefs.ErrConflict, "cannot start a paused container, try unpause instead")
	case s.Restarting:
		e.halt(ctx, c)
	case s.Running:
		return object.Errorf(errdefs.ErrNotModified, "container %s is already running", c.id)
	}
	c.mu.Lock()
	c.st.Restarts, c.delay = 0, 0
	c.mu.Unlock()
	// A start is carried through even if whoever asked for it goes away.
	return e.start(context.WithoutCancel(ctx), c)
}

// start runs the container's process. The caller holds op.
func (e *Engine) start(ctx context.Context, c *instance) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if c.isRemoved() {
		return object.Errorf(errdefs.ErrNotFound, "No such container: %s", c.id)
	}
	proc, err := e.launch(ctx, c)
	if err != nil {
		return e.notStarted(ctx, c, err)
	}
	ended := make(chan struct{})
	c.mu.Lock()
	c.proc, c.conn, c.ended = proc, proc.Conns[0], ended
	c.halt = nil
	c.mu.Unlock()
	at, _ := e.cfg.Networks.Attachment(c.id)
	s := c.update(func(s *status) {
		s.Overlays = placesOf(at)
		s.Running, s.Paused, s.Restarting, s.OOMKilled = true, false, false, false
		s.Pid, s.ExitCode, s.Error, s.Stopped = proc.PID, 0, "", false
		s.StartedAt = time.Now().UTC()
	})
	if err := e.saveState(c.id, &s); err != nil {
		e.cfg.Logger.WarnContext(ctx, "kept no note of a start", "container", c.id[:12], "err", err)
	}
	e.tell(c, events.ActionStart)
	return e.background(ctx, func(ctx context.Context) { e.attend(ctx, c) })
}

// launch makes everything that the container's process needs, and starts it.
// Its first connection is for control, the others are of those who wait to be
// attached.
func (e *Engine) launch(ctx context.Context, c *instance) (*shim.Process, error) {
	defer e.ready(ctx)()
	r := c.rec()
	rootfs, err := e.cfg.Images.Rootfs(ctx, r.ImageID)
	if err != nil {
		return nil, err
	}
	defer rootfs.Release()
	at, err := e.connect(ctx, &r)
	if err != nil {
		return nil, err
	}
	if err = e.writeNames(&r, at); err != nil {
		return nil, fmt.Errorf("write names: %w", err)
	}
	spec, _, err := runspec.Generate(e.input(&r, at.Namespace))
	if err != nil {
		return nil, err
	}
	run := e.runDir(c.id)
	if err = errors.Join(os.RemoveAll(run), os.MkdirAll(filepath.Join(run, "files"), 0o711)); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	j := doors.Job{
		ID: c.id, RunDir: run, StateRoot: e.stateRoot(),
		Process: spec.Process, User: r.Config.User, Groups: r.Host.GroupAdd,
		Root: &doors.Root{
			Spec: spec, Lower: append(slices.Clone(rootfs.Lower), filepath.Join(e.dir(c.id), "lower")),
			Upper: filepath.Join(e.dir(c.id), "upper"), Work: filepath.Join(e.dir(c.id), "work"),
			Files: r.Extra.Files, FilesDir: filepath.Join(run, "files"),
		},
	}
	for _, m := range r.Mounts {
		if m.Volume != "" && m.Fill {
			j.Root.CopyUp = append(j.Root.CopyUp, doors.CopyUp{Volume: m.Mount.Source, Target: m.Mount.Target})
		}
	}
	spec.Process = nil // it is in the job already
	plan, err := e.plan(&r, &j)
	if err != nil {
		return nil, err
	}
	waiting := c.takeWaiting()
	for _, a := range waiting {
		plan.Wants = append(plan.Wants, a.want)
	}
	proc, err := shim.Start(ctx, plan)
	if err != nil {
		for _, a := range waiting {
			a.conn <- nil
		}
		return nil, err
	}
	for i, a := range waiting {
		a.conn <- proc.Conns[i+1]
	}
	return proc, nil
}

func (e *Engine) plan(r *record, j *doors.Job) (shim.Plan, error) {
	data, err := json.Marshal(j)
	if err != nil {
		return shim.Plan{}, fmt.Errorf("write job: %w", err)
	}
	limits, err := logging(&r.Host.LogConfig)
	if err != nil {
		return shim.Plan{}, err
	}
	p := shim.Plan{
		Exe: e.cfg.Exe, Name: r.ID[:12], RunDir: j.RunDir, Job: data,
		Terminal: r.Config.Tty, Stdin: r.Config.OpenStdin, Listen: true, Mounts: true,
		Wants: []shim.Want{0},
	}
	if !limits.off {
		p.LogDir, p.MaxSize, p.MaxFiles = e.logDir(r.ID), limits.size, limits.files
	}
	return p, nil
}

// notStarted cleans up, keeps the reason, and tells it as Docker does: with
// the exit code that a shell would have given.
func (e *Engine) notStarted(ctx context.Context, c *instance, cause error) error {
	e.clean(ctx, c.id)
	text := cause.Error()
	if _, ok := errors.AsType[*shim.CreateError](cause); ok {
		text = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: " + text + ": unknown"
		cause = object.Errorf(errdefs.ErrInvalidArgument, "%s", text)
	}
	s := c.update(func(s *status) {
		s.Running, s.Restarting, s.Pid = false, false, 0
		s.ExitCode, s.Error = startCode(text), text
		s.FinishedAt = time.Now().UTC()
	})
	if err := e.saveState(c.id, &s); err != nil {
		e.cfg.Logger.WarnContext(ctx, "kept no note of a failed start", "container", c.id[:12], "err", err)
	}
	if c.rec().Host.AutoRemove {
		// The client was told; what cannot be removed now is listed still.
		if err := e.remove(ctx, c, true); err != nil {
			e.cfg.Logger.WarnContext(ctx, "left a container that failed to start", "container", c.id[:12], "err", err)
		}
	}
	return cause
}

func startCode(text string) int {
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		return 127
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"):
		return 126
	}
	return 128
}
