package manager_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/wire"
	"skep/store/object"
)

// machine is a node with its containers, which outlive its agent.
type machine struct {
	name    string
	world   *world
	process *process // the agent's
	agent   *agent.Agent

	mu          sync.Mutex
	description swarm.NodeDescription
	containers  map[string]*box
	plane       plane
	off         time.Time // since when the machine is off; zero if it is not
	// What the machine is in the swarm, by its own certificate.
	role       swarm.NodeRole
	generation uint64
	member     *wire.Member
	stints     int // as a manager
	conn       net.Conn
}

// box is a container.
type box struct {
	task    *object.Assignment
	name    string
	created bool
	running bool
	starts  int
	code    int
	ended   chan struct{} // closed when it does not run any more
}

// rules are what the executors were told, by service.
type rules struct {
	mu    sync.Mutex
	fail  map[string]string        // "web start", or "image start" → error
	slow  map[string]time.Duration // "web" → how long its pull takes
	notes []string                 // of data planes and what they mean for tasks that stop
}

func (m *machine) Describe(context.Context) (swarm.NodeDescription, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.description, nil
}

func (m *machine) Controller(a *object.Assignment) (agent.Controller, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Revision == nil {
		return nil, errors.New("revision is not there")
	}
	b := m.containers[a.Task.ID]
	if b == nil {
		b = &box{name: fmt.Sprintf("%s.%d", a.Revision.Service.Name, a.Task.Slot)}
		m.containers[a.Task.ID] = b
	}
	b.task = a
	return &controller{m, b}, nil
}

func (m *machine) Retain(_ context.Context, ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range m.containers {
		if !slices.Contains(ids, id) {
			b.stop(137)
			delete(m.containers, id)
		}
	}
	return nil
}

func (b *box) stop(code int) {
	if b.running {
		b.running, b.code = false, code
		close(b.ended)
	}
}

type controller struct {
	m *machine
	b *box
}

func (c *controller) service() string { return c.b.task.Revision.Service.Name }

func (c *controller) rule(phase string) error {
	r := &c.m.world.rules
	r.mu.Lock()
	defer r.mu.Unlock()
	image := c.b.task.Revision.Spec.ContainerSpec.Image
	if text := cmp.Or(r.fail[c.service()+" "+phase], r.fail[image+" "+phase]); text != "" {
		return errors.New(text)
	}
	return nil
}

func (c *controller) Prepare(ctx context.Context) error {
	c.m.world.rules.mu.Lock()
	slow := c.m.world.rules.slow[c.service()]
	c.m.world.rules.mu.Unlock()
	t := time.NewTimer(slow)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	if err := c.rule("prepare"); err != nil {
		return err
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.created = true
	return nil
}

func (c *controller) Start(context.Context) error {
	if err := c.rule("start"); err != nil {
		return err
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if !c.b.created {
		return errors.New("container is not there")
	}
	if !c.b.running {
		c.b.running, c.b.ended = true, make(chan struct{})
		c.b.starts++
	}
	return nil
}

func (c *controller) Wait(ctx context.Context) error {
	c.m.mu.Lock()
	ended := c.b.ended
	c.m.mu.Unlock()
	if ended == nil {
		return errors.New("container is not there")
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.b.code != 0 {
		return &object.ExitError{Code: c.b.code}
	}
	return nil
}

func (c *controller) Shutdown(context.Context) error {
	if len(c.b.task.Task.Networks) > 0 {
		c.m.world.stops(c.b.name, c.b.task.Task.ID)
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.stop(143)
	return nil
}

func (c *controller) Remove(context.Context) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.stop(137)
	delete(c.m.containers, c.b.task.Task.ID)
	return nil
}

func (c *controller) Status(context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if !c.b.created {
		return nil, nil, nil
	}
	s := &swarm.ContainerStatus{ContainerID: "c-" + c.b.task.Task.ID, ExitCode: c.b.code}
	if c.b.running {
		s.PID = 100
	}
	return s, nil, nil
}

// open is a sealer that hides nothing; sealing is tested where it is done.
type open struct{}

func (open) Seal(domain string, plain []byte) []byte { return append([]byte(domain+"\n"), plain...) }

func (open) Open(domain string, sealed []byte) ([]byte, error) {
	if len(sealed) < len(domain)+1 || string(sealed[:len(domain)+1]) != domain+"\n" {
		return nil, errors.New("sealed for something else")
	}
	return sealed[len(domain)+1:], nil
}
