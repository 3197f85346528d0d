package engine_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"skep/admin/engine"
	"skep/store/object"
)

// runtime is a container runtime in memory: its processes are functions.
type runtime struct {
	engine.Containers // what is not here is not called
	mu                sync.Mutex
	all               []*proc
	execs             map[string]*proc
	images            *imageStore
}

// proc is a container, or a process that was started in one.
type proc struct {
	id, name, image string
	req             container.CreateRequest
	exec            container.ExecCreateRequest
	parent          string
	created         time.Time
	state           container.ContainerState
	code            int
	logs            []object.LogLine
	height, width   uint

	started, ended, removed chan struct{}
	cancel                  context.CancelFunc
	clients                 []object.Streams
	stdin                   io.Reader
	news                    chan struct{}
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func newProc(name string) *proc {
	return &proc{
		id: newID(), name: name, created: time.Now(), state: container.StateCreated,
		started: make(chan struct{}), ended: make(chan struct{}), removed: make(chan struct{}), news: make(chan struct{}),
	}
}

// run is what a command does.
func run(ctx context.Context, cmd []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch cmd[0] {
	case "echo":
		fmt.Fprintln(stdout, strings.Join(cmd[1:], " "))
	case "both":
		fmt.Fprintln(stdout, "out")
		fmt.Fprintln(stderr, "err")
	case "cat":
		_, _ = io.Copy(stdout, stdin)
	case "flood":
		stdout.Write(bytes.Repeat([]byte("0123456789abcde\n"), 1<<16))
	case "exit":
		return 7
	case "ask": // of somebody on a raw terminal
		fmt.Fprint(stdout, "name? ")
		line, _ := bufio.NewReader(stdin).ReadString('\r')
		fmt.Fprint(stdout, "hello ", line)
	case "prompt":
		for ctx.Err() == nil {
			fmt.Fprint(stdout, "? ")
			time.Sleep(20 * time.Millisecond)
		}
	default: // sleep
		<-ctx.Done()
		return 137
	}
	return 0
}

type fanOut struct {
	r      *runtime
	p      *proc
	stderr bool
}

func (f fanOut) Write(b []byte) (int, error) {
	f.r.mu.Lock()
	f.p.logs = append(f.p.logs, object.LogLine{Time: time.Now(), Stderr: f.stderr, Text: bytes.Clone(b)})
	close(f.p.news)
	f.p.news = make(chan struct{})
	clients := f.p.clients
	f.r.mu.Unlock()
	for _, c := range clients {
		to := c.Stdout
		if f.stderr {
			to = c.Stderr
		}
		if to != nil {
			_, _ = to.Write(b)
		}
	}
	return len(b), nil
}

func (r *runtime) launch(p *proc, cmd []string) {
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	p.cancel, p.state = cancel, container.StateRunning
	stdin := p.stdin
	r.mu.Unlock()
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	close(p.started)
	go func() {
		code := run(ctx, cmd, stdin, fanOut{r, p, false}, fanOut{r, p, true})
		r.mu.Lock()
		p.code, p.state = code, container.StateExited
		close(p.ended)
		auto := p.req.HostConfig != nil && p.req.HostConfig.AutoRemove
		r.mu.Unlock()
		if auto {
			_ = r.Remove(ctx, p.id, true, true)
		}
	}()
}

func (r *runtime) find(ref string) (*proc, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.all {
		if p.name == strings.TrimPrefix(ref, "/") || ref != "" && strings.HasPrefix(p.id, ref) {
			return p, nil
		}
	}
	return nil, object.Errorf(errdefs.ErrNotFound, "No such container: %s", ref)
}

func (r *runtime) Create(_ context.Context, name string, req container.CreateRequest) (container.CreateResponse, error) {
	if _, err := r.images.Inspect(context.Background(), req.Image); err != nil {
		return container.CreateResponse{}, err
	}
	if req.HostConfig.NetworkMode == "nosuch" {
		return container.CreateResponse{}, object.Errorf(errdefs.ErrNotFound, "network %s not found", req.HostConfig.NetworkMode)
	}
	if name == "" {
		name = fmt.Sprint("c", len(r.all))
	}
	// Not find: an ID may begin as the name reads.
	if slices.ContainsFunc(r.all, func(p *proc) bool { return p.name == name }) {
		return container.CreateResponse{}, object.Errorf(errdefs.ErrConflict, "Conflict. The container name %q is already in use", "/"+name)
	}
	p := newProc(name)
	p.req, p.image = req, "sha256:"+strings.Repeat("ab", 32)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p)
	return container.CreateResponse{ID: p.id}, nil
}

func (r *runtime) Start(_ context.Context, ref string) error {
	p, err := r.find(ref)
	if err != nil {
		return err
	}
	if p.state != container.StateCreated {
		return errdefs.ErrNotModified
	}
	r.launch(p, append(append([]string{}, p.req.Entrypoint...), p.req.Cmd...))
	return nil
}

func (r *runtime) Kill(_ context.Context, ref, _ string) error {
	p, err := r.find(ref)
	if err != nil {
		return err
	}
	if p.state != container.StateRunning {
		return object.Errorf(errdefs.ErrConflict, "cannot kill container: %s: container %s is not running", ref, p.id)
	}
	p.cancel()
	return nil
}

func (r *runtime) Stop(ctx context.Context, ref, _ string, _ *time.Duration) error {
	if err := r.Kill(ctx, ref, ""); err != nil {
		return errdefs.ErrNotModified
	}
	p, err := r.find(ref)
	if err == nil {
		<-p.ended
	}
	return nil
}

func (r *runtime) Rename(_ context.Context, ref, name string) error {
	p, err := r.find(ref)
	if err == nil {
		p.name = name
	}
	return err
}

func (r *runtime) ConnectNetwork(_ context.Context, ref, name string, _ *network.EndpointSettings) error {
	return object.Errorf(errdefs.ErrNotFound, "network %s not found", name)
}

func (r *runtime) DisconnectNetwork(_ context.Context, ref, name string) error {
	return object.Errorf(errdefs.ErrNotFound, "container %s is not connected to network %s", ref, name)
}

func (r *runtime) Remove(_ context.Context, ref string, force, _ bool) error {
	p, err := r.find(ref)
	if err != nil {
		return err
	}
	if p.state == container.StateRunning {
		if !force {
			return object.Errorf(errdefs.ErrConflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+p.name)
		}
		p.cancel()
		<-p.ended
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, q := range r.all {
		if p == q {
			r.all = append(r.all[:i:i], r.all[i+1:]...)
			close(p.removed)
		}
	}
	return nil
}

func (r *runtime) Wait(_ context.Context, ref string, until container.WaitCondition) (func(context.Context) (container.WaitResponse, error), error) {
	p, err := r.find(ref)
	if err != nil {
		return nil, err
	}
	done := p.ended
	if until == container.WaitConditionRemoved {
		done = p.removed
	}
	return func(ctx context.Context) (container.WaitResponse, error) {
		select {
		case <-done:
			return container.WaitResponse{StatusCode: int64(p.code)}, nil
		case <-ctx.Done():
			return container.WaitResponse{}, ctx.Err()
		}
	}, nil
}

func (r *runtime) List(_ context.Context, all, size bool) (list []container.Summary, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.all {
		if !all && p.state != container.StateRunning {
			continue
		}
		s := container.Summary{
			ID: p.id, Names: []string{"/" + p.name}, Image: p.req.Image, ImageID: p.image, Command: strings.Join(p.req.Cmd, " "),
			Created: p.created.Unix(), State: p.state, Status: "Up 2 minutes", Labels: p.req.Labels,
			Health: &container.HealthSummary{Status: container.Healthy},
			Ports:  []container.PortSummary{{PrivatePort: 80, PublicPort: 8080, Type: "tcp"}},
			NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{
				"bridge": {NetworkID: bridgeID},
			}},
			Mounts: []container.MountPoint{{Type: mount.TypeVolume, Name: "used", Destination: "/data"}},
		}
		if size {
			s.SizeRw, s.SizeRootFs = 12, 1200
		}
		list = append(list, s)
	}
	return list, nil
}

func (r *runtime) Inspect(_ context.Context, ref string, _ bool) (container.InspectResponse, error) {
	p, err := r.find(ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &network.EndpointSettings{NetworkID: bridgeID, IPAddress: addr("172.17.0.2"), IPPrefixLen: 16, Gateway: addr("172.17.0.1")}
	return container.InspectResponse{
		ID: p.id, Name: "/" + p.name, Created: p.created.Format(time.RFC3339Nano), Image: p.image,
		State:  &container.State{Status: p.state, Running: p.state == container.StateRunning, ExitCode: p.code},
		Config: p.req.Config, HostConfig: p.req.HostConfig,
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{"bridge": e}},
	}, nil
}

func (r *runtime) Top(context.Context, string, string) (container.TopResponse, error) {
	return container.TopResponse{Titles: []string{"UID", "PID", "CMD"}, Processes: [][]string{{"root", "1", "sleep"}}}, nil
}

func (r *runtime) Stats(_ context.Context, ref string) (s container.StatsResponse, err error) {
	p, err := r.find(ref)
	if err != nil {
		return s, err
	}
	if p.state != container.StateRunning {
		return s, object.Errorf(errdefs.ErrConflict, "container %s is not running", p.id)
	}
	s.Read = time.Now()
	s.CPUStats.CPUUsage.TotalUsage = uint64(time.Since(p.created))
	s.CPUStats.SystemUsage, s.CPUStats.OnlineCPUs = uint64(time.Since(p.created)), 1
	s.MemoryStats.Usage, s.MemoryStats.Limit = 1<<20, 8<<20
	return s, nil
}

func (r *runtime) Logs(ctx context.Context, ref string, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		p, err := r.find(ref)
		if err != nil {
			yield(object.LogLine{}, err)
			return
		}
		for n := 0; ; {
			r.mu.Lock()
			lines, news, running := p.logs[n:], p.news, p.state == container.StateRunning
			r.mu.Unlock()
			if n == 0 && q.Tail >= 0 && len(lines) > q.Tail {
				n += len(lines) - q.Tail
				lines = lines[len(lines)-q.Tail:]
			}
			for _, l := range lines {
				n++
				if (l.Stderr && q.Stderr || !l.Stderr && q.Stdout) && !yield(l, nil) {
					return
				}
			}
			if !q.Follow || !running {
				return
			}
			select {
			case <-news:
			case <-p.ended:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (r *runtime) Attach(ctx context.Context, ref string, s object.Streams) error {
	p, err := r.find(ref)
	if err != nil {
		return err
	}
	r.mu.Lock()
	p.clients = append(p.clients, s)
	if s.Stdin != nil {
		p.stdin = s.Stdin
	}
	r.mu.Unlock()
	s.Attached()
	select {
	case <-p.ended:
	case <-ctx.Done():
	}
	return ctx.Err()
}

func (r *runtime) Resize(_ context.Context, ref string, height, width uint) error {
	p, err := r.find(ref)
	if err == nil {
		p.height, p.width = height, width
	}
	return err
}

func (r *runtime) CreateExec(_ context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	c, err := r.find(ref)
	if err != nil {
		return "", err
	}
	if c.state != container.StateRunning {
		return "", object.Errorf(errdefs.ErrConflict, "container %s is not running", c.id)
	}
	p := newProc("")
	p.exec, p.parent = req, c.id
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs[p.id] = p
	return p.id, nil
}

func (r *runtime) ResizeExec(_ context.Context, id string, height, width uint) error {
	p, err := r.exec(id)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		p.height, p.width = height, width
	}
	return err
}

func (r *runtime) exec(id string) (*proc, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.execs[id]; p != nil {
		return p, nil
	}
	return nil, object.Errorf(errdefs.ErrNotFound, "No such exec instance: %s", id)
}

func (r *runtime) StartExec(_ context.Context, id string, detach bool, height, width uint, s object.Streams) error {
	p, err := r.exec(id)
	if err != nil {
		return err
	}
	if p.exec.Cmd[0] == "missing" {
		p.code, p.state = 127, container.StateExited
		return fmt.Errorf("OCI runtime exec failed: executable file not found in $PATH")
	}
	p.clients, p.stdin, p.height, p.width = []object.Streams{s}, s.Stdin, height, width
	r.launch(p, p.exec.Cmd)
	if !detach {
		<-p.ended
	}
	return nil
}

func (r *runtime) InspectExec(_ context.Context, id string) (container.ExecInspectResponse, error) {
	p, err := r.exec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := container.ExecInspectResponse{
		ID: id, ContainerID: p.parent, Running: p.state == container.StateRunning,
		OpenStdin: p.exec.AttachStdin, OpenStdout: p.exec.AttachStdout, OpenStderr: p.exec.AttachStderr,
		ProcessConfig: &container.ExecProcessConfig{Tty: p.exec.Tty},
	}
	if p.state == container.StateExited {
		e.ExitCode = &p.code
	}
	return e, nil
}
