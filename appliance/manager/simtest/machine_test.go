package simtest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/store/object"
)

// machine is what a worker runs on. Its boxes outlive its agent.
type machine struct {
	host string
	// stopping is called before what runs for a task ends because the agent says so.
	stopping func(task string)

	mu    sync.Mutex
	boxes map[string]*box // by task
}

// box is a container.
type box struct {
	task    *object.Assignment
	created bool
	running bool
	code    int
	ended   chan struct{} // closed when it does not run any more
}

// Describe implements agent.Executor.
func (m *machine) Describe(context.Context) (swarm.NodeDescription, error) {
	return swarm.NodeDescription{Hostname: m.host, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}}, nil
}

// Controller implements agent.Executor.
func (m *machine) Controller(a *object.Assignment) (agent.Controller, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Revision == nil {
		return nil, errors.New("revision is not there")
	}
	if n := len(a.Revision.Spec.ContainerSpec.Secrets); n != len(a.Secrets) {
		return nil, fmt.Errorf("%d secrets of %d are there", len(a.Secrets), n)
	}
	b := m.boxes[a.Task.ID]
	if b == nil {
		b = new(box)
		m.boxes[a.Task.ID] = b
	}
	b.task = a
	return &controller{m, b}, nil
}

// Retain implements agent.Executor.
func (m *machine) Retain(_ context.Context, ids []string) error {
	for _, id := range m.running() {
		if !slices.Contains(ids, id) {
			m.stopping(id)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range m.boxes {
		if !slices.Contains(ids, id) {
			b.stop(137)
			delete(m.boxes, id)
		}
	}
	return nil
}

// halt ends all that runs, as if the machine was switched off.
func (m *machine) halt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.boxes {
		b.stop(137)
	}
}

// running are the tasks whose boxes run.
func (m *machine) running() (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range m.boxes {
		if b.running {
			ids = append(ids, id)
		}
	}
	return ids
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

// Prepare implements agent.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(300 * time.Millisecond):
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.created = true
	return nil
}

// Start implements agent.Controller.
func (c *controller) Start(context.Context) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if !c.b.created {
		return errors.New("container is not there")
	}
	if !c.b.running {
		c.b.running, c.b.ended = true, make(chan struct{})
	}
	return nil
}

// Wait implements agent.Controller.
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

// announce is called before the box is stopped.
func (c *controller) announce() {
	c.m.mu.Lock()
	task, running := c.b.task.Task.ID, c.b.running
	c.m.mu.Unlock()
	if running {
		c.m.stopping(task)
	}
}

// Shutdown implements agent.Controller.
func (c *controller) Shutdown(context.Context) error {
	c.announce()
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.stop(143)
	return nil
}

// Remove implements agent.Controller.
func (c *controller) Remove(context.Context) error {
	c.announce()
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.b.stop(137)
	delete(c.m.boxes, c.b.task.Task.ID)
	return nil
}

// Status implements agent.Controller.
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
