package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/exec/doors"
	"skep/exec/runspec"
	"skep/exec/shim"
	"skep/exec/stdio"
	"skep/store/object"
)

// execution is a process that somebody executes in a container. It is known
// until the container ends.
type execution struct {
	id  string
	box *instance
	req container.ExecCreateRequest
	// quiet ones are the node's own, and told to nobody.
	quiet bool

	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	control *shim.Conn
	// size is what a client asked for before there was a terminal.
	size [2]uint
}

// CreateExec prepares a process to be executed in a container.
func (e *Engine) CreateExec(_ context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	c, err := e.find(ref)
	if err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", invalid("no exec command specified")
	}
	x := &execution{id: newID(), box: c, req: req}
	if err := c.executable(); err != nil {
		return "", err
	}
	e.mu.Lock()
	e.execs[x.id] = x
	e.mu.Unlock()
	c.mu.Lock()
	c.execs[x.id] = true
	c.mu.Unlock()
	e.tell(c, events.Action(string(events.ActionExecCreate)+": "+strings.Join(req.Cmd, " ")), "execID", x.id)
	return x.id, nil
}

func (c *instance) executable() error {
	s := c.status()
	switch {
	case s.Restarting:
		return object.Errorf(errdefs.ErrConflict, "container %s is restarting, wait until the container is running", c.id)
	case s.Paused:
		return object.Errorf(errdefs.ErrConflict, "container %s is paused, unpause the container before exec", c.id)
	case !s.Running:
		return object.Errorf(errdefs.ErrConflict, "container %s is not running", c.id)
	}
	return nil
}

func (e *Engine) findExec(id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, object.Errorf(errdefs.ErrNotFound, "No such exec instance: %s", id)
}

// StartExec returns at once if detach is set, else when the process ended or
// the client detached.
func (e *Engine) StartExec(ctx context.Context, id string, detach bool, height, width uint, s object.Streams) error {
	x, err := e.findExec(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	again, ended := x.started, x.code != nil
	x.started = true
	x.mu.Unlock()
	switch {
	case ended:
		return object.Errorf(errdefs.ErrConflict, "exec command %s has already run", id)
	case again:
		return object.Errorf(errdefs.ErrConflict, "exec command %s is already running", id)
	}
	if err := x.box.executable(); err != nil {
		return err
	}
	if detach {
		s = object.Streams{}
	}
	e.tell(x.box, events.Action(string(events.ActionExecStart)+": "+strings.Join(x.req.Cmd, " ")), "execID", x.id)
	size := [2]uint{height, width}
	if x.req.ConsoleSize != nil && size == [2]uint{} {
		size = *x.req.ConsoleSize
	}
	if err := e.runExec(ctx, x, size, s, detach); err != nil {
		return err
	}
	return nil
}

// runExec starts the process and stays with it as far as the client wants.
func (e *Engine) runExec(ctx context.Context, x *execution, size [2]uint, s object.Streams, detach bool) error {
	if !x.req.AttachStdin {
		s.Stdin = nil
	}
	run := e.execDir(x)
	want := wants(s) | shim.WantClose
	proc, err := e.spawnExec(context.WithoutCancel(ctx), x, run, size, want)
	if err != nil {
		code, text := execFailure(err)
		x.finish(code)
		return errors.Join(object.Errorf(errdefs.ErrInvalidArgument, "%s", text), os.RemoveAll(run))
	}
	x.mu.Lock()
	x.running, x.pid, x.control = true, proc.PID, proc.Conns[0]
	// Without a size this does nothing; a shim that is gone shows soon enough.
	_ = x.control.Resize(x.size[0], x.size[1])
	x.mu.Unlock()
	done := make(chan struct{})
	err = e.background(ctx, func(ctx context.Context) {
		defer close(done)
		e.attendExec(ctx, x, proc, run)
	})
	if err != nil {
		return err
	}
	if detach {
		return proc.Conns[1].Close()
	}
	defer proc.Conns[1].Close()
	err = stream(ctx, proc.Conns[1], s, !x.req.Tty)
	if errors.Is(err, stdio.ErrDetached) {
		e.tell(x.box, events.ActionExecDetach, "execID", x.id)
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-done: // the exit code is known now
	case <-ctx.Done():
	}
	return nil
}

func (e *Engine) execDir(x *execution) string {
	return filepath.Join(e.runDir(x.box.id), "exec", x.id)
}

func (e *Engine) spawnExec(ctx context.Context, x *execution, run string, size [2]uint, want shim.Want) (*shim.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer e.ready(ctx)()
	j, err := json.Marshal(e.execJob(x, run, size))
	if err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	return shim.Start(ctx, shim.Plan{
		Exe: e.cfg.Exe, Name: x.box.id[:12], RunDir: run, Job: j,
		Terminal: x.req.Tty, Stdin: x.req.AttachStdin, Wants: []shim.Want{0, want},
	})
}

func (e *Engine) execJob(x *execution, run string, size [2]uint) doors.Job {
	r := x.box.rec()
	p := &specs.Process{
		Terminal: x.req.Tty, Args: x.req.Cmd,
		Env: runspec.ExecEnvironment(runspec.Environment(&r.Config, runspec.Hostname(r.ID, &r.Config)), x.req.Tty, x.req.Env),
		Cwd: path.Join("/", r.Config.WorkingDir),
	}
	if x.req.WorkingDir != "" {
		p.Cwd = x.req.WorkingDir
	}
	if x.req.Tty && size != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: size[0], Width: size[1]}
	}
	if x.req.Privileged {
		all := e.machine.Capabilities
		p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
	}
	j := doors.Job{ID: r.ID, RunDir: run, StateRoot: e.stateRoot(), Process: p, User: r.Config.User, Groups: r.Host.GroupAdd}
	if x.req.User != "" {
		j.User, j.Groups = x.req.User, nil
	}
	return j
}

// execFailure gives the exit code that a shell would have given.
func execFailure(err error) (code int, text string) {
	text = err.Error()
	if _, ok := errors.AsType[*shim.CreateError](err); ok {
		text = "OCI runtime exec failed: exec failed: " + text + ": unknown"
	}
	switch code = startCode(text); code {
	case 126, 127:
		return code, text
	}
	return 126, text
}

// attendExec stays with the process until it ends.
func (e *Engine) attendExec(ctx context.Context, x *execution, proc *shim.Process, run string) {
	conn := proc.Conns[0]
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	kind, _, err := conn.Read()
	for err == nil && kind != shim.Ended {
		kind, _, err = conn.Read()
	}
	if ctx.Err() != nil {
		return
	}
	code := lostCode
	if exit, lost := shim.ReadExit(run); lost == nil {
		code = exit.Code
	}
	x.finish(code)
	if !x.quiet {
		e.tell(x.box, events.ActionExecDie, "execID", x.id, "exitCode", strconv.Itoa(code))
	}
	// The reader of the output may be slow, and the shim waits for it.
	_ = e.background(ctx, func(ctx context.Context) { // only not at shutdown
		for err == nil {
			_, _, err = conn.Read()
		}
		if ctx.Err() == nil {
			conn.Close()
			_ = os.RemoveAll(run) // it goes with the container at the latest
			proc.Reap()
		}
	})
}

func (x *execution) finish(code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.running, x.pid, x.code, x.control = false, 0, &code, nil
}

// endExecs forgets the processes of a container that ended. Their shims end
// by themselves.
func (e *Engine) endExecs(c *instance) {
	c.mu.Lock()
	ids := c.execs
	c.execs = map[string]bool{}
	c.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range ids {
		delete(e.execs, id)
	}
}

// InspectExec tells of a process that was executed.
func (e *Engine) InspectExec(_ context.Context, id string) (container.ExecInspectResponse, error) {
	x, err := e.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return container.ExecInspectResponse{
		ID: x.id, ContainerID: x.box.id, Running: x.running, ExitCode: x.code, Pid: x.pid,
		OpenStdin: x.req.AttachStdin, OpenStdout: x.req.AttachStdout, OpenStderr: x.req.AttachStderr,
		DetachKeys: []byte(x.req.DetachKeys), CanRemove: x.code != nil,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.req.Tty, Entrypoint: x.req.Cmd[0], Arguments: slices.Clone(x.req.Cmd[1:]),
			Privileged: &x.req.Privileged, User: x.req.User,
		},
	}, nil
}

// ResizeExec sets the size of the process's terminal.
func (e *Engine) ResizeExec(_ context.Context, id string, height, width uint) error {
	x, err := e.findExec(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.control != nil:
		return x.control.Resize(height, width)
	case x.code != nil:
		return object.Errorf(errdefs.ErrConflict, "exec process is not running")
	}
	x.size = [2]uint{height, width}
	return nil
}
