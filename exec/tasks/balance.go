package tasks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

const (
	// listenPoll is how often a container that does not serve yet is looked at.
	listenPoll = 20 * time.Millisecond
	// listenPatience is how long a task stays starting because it does not
	// listen on its ports yet. After that it is running, but is asked to serve
	// only once it listens.
	listenPatience = time.Second
	// drainDelay lies between the last connection that a container is given and
	// its stop signal: what is on its way must arrive at an open socket.
	drainDelay = 100 * time.Millisecond
)

// Balancer takes containers in and out of the balancing of their services' ports.
type Balancer interface {
	Activate(ctx context.Context, id string, active bool) error
	Attachment(id string) (object.Attachment, bool)
}

// shared are the task's ports that connections are balanced over.
func (c *Controller) shared() []object.Port {
	if networkMode(c.a) != network.NetworkBridge {
		return nil
	}
	ports, _ := c.x.places(c.a)
	return slices.DeleteFunc(ports, func(p object.Port) bool { return !p.Shared })
}

// awaitListen gives the container a moment to listen before the task counts as
// running. It is no error if the container does not, or has ended: Wait sees to
// both.
func (c *Controller) awaitListen(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, listenPatience, errPatience)
	defer cancel()
	tick := time.NewTicker(listenPoll)
	defer tick.Stop()
	for {
		if done, err := c.join(ctx); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, errPatience) {
				return err
			}
			return nil
		}
	}
}

var errPatience = errors.New("does not listen yet")

// join takes the container into the balancing if it can serve: it is healthy,
// or, without a health check, listens on all of its ports. It reports whether
// there is nothing left to do.
func (c *Controller) join(ctx context.Context) (done bool, err error) {
	ps := c.shared()
	if len(ps) == 0 {
		return true, nil
	}
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if err != nil {
		return false, err
	}
	if in.State == nil || !in.State.Running {
		return true, nil
	}
	if at, ok := c.x.Balancer.Attachment(in.ID); !ok || !at.Inactive {
		return true, nil
	}
	serves := in.State.Health != nil && in.State.Health.Status == container.Healthy
	if in.Config == nil || !checked(in.Config.Healthcheck) {
		if serves, err = listens(in.State.Pid, ps); err != nil {
			return false, err
		}
	}
	if !serves {
		return false, nil
	}
	return true, c.x.Balancer.Activate(ctx, in.ID, true)
}

// drain takes the container out of the balancing, so that no new connection
// reaches it, and lets those arrive that are on their way.
func (c *Controller) drain(ctx context.Context, id string) error {
	if len(c.shared()) == 0 {
		return nil
	}
	if err := c.x.Balancer.Activate(ctx, id, false); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drain %s: %w", c.name, err)
	}
	t := time.NewTimer(drainDelay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
