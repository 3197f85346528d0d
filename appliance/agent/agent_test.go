package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/wire"
	"skep/store/object"
)

// sealer shows tampering and hides the bytes from a plain search.
type sealer struct{}

func (sealer) Seal(domain string, plain []byte) []byte {
	sum := sha256.Sum256(append([]byte(domain), plain...))
	out := slices.Clone(sum[:])
	for _, b := range plain {
		out = append(out, b^0xa5)
	}
	return out
}

func (s sealer) Open(domain string, sealed []byte) ([]byte, error) {
	if len(sealed) < sha256.Size {
		return nil, io.ErrUnexpectedEOF
	}
	var plain []byte
	for _, b := range sealed[sha256.Size:] {
		plain = append(plain, b^0xa5)
	}
	if !bytes.Equal(s.Seal(domain, plain), sealed) {
		return nil, errors.New("seal is broken")
	}
	return plain, nil
}

// runtime is an executor whose tasks run until they are stopped.
type runtime struct {
	mu     sync.Mutex
	calls  []string
	retain error
}

func (r *runtime) note(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
}

// take is what was called since the last take.
func (r *runtime) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := strings.Join(r.calls, " ")
	r.calls = nil
	return out
}

func (r *runtime) Describe(context.Context) (swarm.NodeDescription, error) {
	return swarm.NodeDescription{Hostname: "host"}, nil
}

func (r *runtime) Retain(_ context.Context, ids []string) error {
	r.note("retain(" + strings.Join(ids, ",") + ")")
	return r.retain
}

func (r *runtime) Controller(a *object.Assignment) (agent.Controller, error) {
	if a.Revision == nil {
		return nil, errors.New("no revision")
	}
	text := a.Task.ID + "@" + a.Node.Hostname
	for _, s := range a.Secrets {
		text += "+" + string(s.Spec.Data)
	}
	r.note(text)
	return &running{r: r, id: a.Task.ID, stopped: make(chan struct{})}, nil
}

type running struct {
	r       *runtime
	id      string
	stopped chan struct{}
}

func (c *running) Prepare(context.Context) error { c.r.note("prepare"); return nil }
func (c *running) Start(context.Context) error   { c.r.note("start"); return nil }
func (c *running) Remove(context.Context) error  { c.r.note("remove"); return nil }

func (c *running) Wait(ctx context.Context) error {
	c.r.note("wait")
	select {
	case <-ctx.Done():
		return errors.New("wait was cut short") // not all runtimes say why
	case <-c.stopped:
		return nil
	}
}

func (c *running) Shutdown(context.Context) error {
	c.r.note("shutdown")
	close(c.stopped)
	return nil
}

func (c *running) Status(context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	return nil, nil, nil
}

// manager is the other end of an agent's session, by hand.
type manager struct {
	t     *testing.T
	dials chan *wire.Conn
}

func start(t *testing.T, file string, r *runtime) (m *manager, stop func()) {
	t.Helper()
	m, _, stop = startWith(t, file, r, func(*agent.Config) {})
	return m, stop
}

func startWith(t *testing.T, file string, r *runtime, configure func(*agent.Config)) (m *manager, a *agent.Agent, stop func()) {
	t.Helper()
	m = &manager{t: t, dials: make(chan *wire.Conn)}
	cfg := agent.Config{
		NodeID: "n1", File: file, Sealer: sealer{}, Executor: r, Logger: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			select {
			case m.dials <- wire.NewConn(there):
				return here, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
	configure(&cfg)
	a = agent.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }() // waited for by stop
	return m, a, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want that it was canceled", err)
		}
	}
}

func (m *manager) welcome() *wire.Conn {
	m.t.Helper()
	c := <-m.dials
	if hello := m.receive(c); hello.Hello == nil || hello.Hello.Description.Hostname != "host" {
		m.t.Fatalf("session begins with %+v", hello)
	}
	m.send(c, &wire.Message{Welcome: &wire.Welcome{Period: time.Hour}})
	return c
}

func (m *manager) receive(c *wire.Conn) *wire.Message {
	m.t.Helper()
	got, err := c.Receive(time.Minute)
	if err != nil {
		m.t.Fatal(err)
	}
	return got
}

func (m *manager) send(c *wire.Conn, msg *wire.Message) {
	m.t.Helper()
	if err := c.Send(msg, time.Minute); err != nil {
		m.t.Fatal(err)
	}
}

// until acknowledges statuses until one of them is state.
func (m *manager) until(c *wire.Conn, state swarm.TaskState) {
	m.t.Helper()
	for {
		s := m.receive(c).Statuses
		if s == nil {
			continue
		}
		m.send(c, &wire.Message{Acknowledge: &wire.Acknowledge{Statuses: s.Sequence}})
		if slices.ContainsFunc(s.Tasks, func(t wire.TaskStatus) bool { return t.Status.State == state }) {
			return
		}
	}
}

func pack(t *testing.T, o object.Object) wire.Item {
	t.Helper()
	i, err := wire.Pack(o)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func task(t *testing.T, desired swarm.TaskState) wire.Item {
	t.Helper()
	o := &object.Task{ID: "t1", ServiceID: "s", SpecVersion: swarm.Version{Index: 7}, NodeID: "n1", DesiredState: desired}
	o.Status.State = swarm.TaskStateAssigned
	return pack(t, o)
}

func complete(t *testing.T) *wire.Message {
	t.Helper()
	rev := &object.Revision{ServiceID: "s", SpecVersion: swarm.Version{Index: 7}}
	rev.Spec.ContainerSpec = &swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{SecretID: "k"}}}
	secret := &object.Secret{Secret: swarm.Secret{ID: "k", Spec: swarm.SecretSpec{Data: []byte("canary")}}}
	return &wire.Message{Assignments: &wire.Assignments{
		Complete: true, ResultsIn: "1",
		Items: []wire.Item{task(t, swarm.TaskStateRunning), pack(t, rev), pack(t, secret)},
	}}
}

func expect(t *testing.T, r *runtime, want string) {
	t.Helper()
	synctest.Wait()
	if got := r.take(); got != want {
		t.Errorf("called: got %q, want %q", got, want)
	}
}

func TestAgent_LifeOfATask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "tasks")
		r := &runtime{}
		m, stop := start(t, file, r)
		c := m.welcome()
		m.send(c, complete(t))
		m.until(c, swarm.TaskStateRunning)
		expect(t, r, "retain(t1) t1@host+canary prepare start wait")
		stop()
		expect(t, r, "")

		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("canary")) {
			t.Error("the task file shows a secret")
		}
		if left, err := filepath.Glob(file + ".*"); err != nil || len(left) > 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}

		// It goes on without a manager, and does not start again.
		m, stop = start(t, file, r)
		expect(t, r, "retain(t1) t1@host+canary wait")
		c = m.welcome()
		m.until(c, swarm.TaskStateRunning) // told again to whoever leads now
		m.send(c, complete(t))
		m.send(c, &wire.Message{Assignments: &wire.Assignments{
			AppliesTo: "1", ResultsIn: "2", Items: []wire.Item{task(t, swarm.TaskStateShutdown)},
		}})
		m.until(c, swarm.TaskStateShutdown)
		expect(t, r, "shutdown")
		m.send(c, &wire.Message{Assignments: &wire.Assignments{
			AppliesTo: "2", ResultsIn: "3", Items: []wire.Item{{Kind: object.KindTask, Key: "t1"}},
		}})
		expect(t, r, "remove")
		stop()
	})
}

func TestAgent_DesiredStateDoesNotGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runtime{}
		m, stop := start(t, filepath.Join(t.TempDir(), "tasks"), r)
		defer stop()
		c := m.welcome()
		m.send(c, complete(t))
		m.until(c, swarm.TaskStateRunning)
		for i, desired := range []swarm.TaskState{swarm.TaskStateShutdown, swarm.TaskStateRunning} {
			m.send(c, &wire.Message{Assignments: &wire.Assignments{
				AppliesTo: string(rune('1' + i)), ResultsIn: string(rune('2' + i)), Items: []wire.Item{task(t, desired)},
			}})
		}
		m.until(c, swarm.TaskStateShutdown)
		expect(t, r, "retain(t1) t1@host+canary prepare start wait shutdown")
	})
}

func TestAgent_BrokenChainBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runtime{}
		m, stop := start(t, filepath.Join(t.TempDir(), "tasks"), r)
		defer stop()
		c := m.welcome()
		m.send(c, &wire.Message{Assignments: &wire.Assignments{AppliesTo: "4", ResultsIn: "5", Items: []wire.Item{task(t, swarm.TaskStateRunning)}}})
		if got, err := c.Receive(time.Minute); err == nil {
			t.Errorf("session goes on with %+v", got)
		}
		c = m.welcome()
		m.send(c, complete(t))
		m.until(c, swarm.TaskStateRunning)
	})
}

func TestAgent_LostFileKeepsContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "tasks")
		if err := os.WriteFile(file, []byte("not what was written"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := &runtime{}
		m, stop := start(t, file, r)
		defer stop()
		expect(t, r, "") // nothing is removed before a manager has spoken
		c := m.welcome()
		m.send(c, complete(t))
		m.until(c, swarm.TaskStateRunning)
		expect(t, r, "retain(t1) t1@host+canary prepare start wait")
	})
}

func TestAgent_PartsAreOneSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runtime{}
		m, stop := start(t, filepath.Join(t.TempDir(), "tasks"), r)
		defer stop()
		c := m.welcome()
		set := complete(t).Assignments
		m.send(c, &wire.Message{Assignments: &wire.Assignments{Complete: true, ResultsIn: "1", More: true, Items: set.Items[:1]}})
		expect(t, r, "")
		m.send(c, &wire.Message{Assignments: &wire.Assignments{Complete: true, ResultsIn: "1", Items: set.Items[1:]}})
		m.until(c, swarm.TaskStateRunning)
		expect(t, r, "retain(t1) t1@host+canary prepare start wait")
	})
}

// A runtime that cannot clean up, and a disk that takes nothing, do not keep
// the agent from what it can do.
func TestAgent_GoesOnWhatever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gone")
		r := &runtime{retain: errors.New("device is busy")}
		m, stop := start(t, filepath.Join(dir, "tasks"), r)
		c := m.welcome()
		m.send(c, complete(t))
		if got, err := c.Receive(time.Minute); err == nil {
			t.Errorf("assignments that cannot be stored: got %+v", got)
		}
		expect(t, r, "") // nothing starts that is not stored
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c = m.welcome()
		m.send(c, complete(t))
		m.until(c, swarm.TaskStateRunning)
		expect(t, r, "retain(t1) t1@host+canary prepare start wait")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		r.retain = nil
		set := complete(t)
		set.Assignments.Items[0] = task(t, swarm.TaskStateShutdown)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.send(c, set)
		m.until(c, swarm.TaskStateShutdown)
		expect(t, r, "retain(t1) shutdown")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // the status cannot be stored
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if _, err := os.Stat(filepath.Join(dir, "tasks")); err != nil {
			t.Error(err)
		}
		stop()
	})
}
