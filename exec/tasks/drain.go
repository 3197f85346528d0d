package tasks

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// drainDelay lies between the last connection that a container is given and its
// stop signal: what is on its way must arrive at an open socket.
const drainDelay = 100 * time.Millisecond

// Networks is what a task needs of the node's networks.
type Networks interface {
	// Withdraw leads no new connection from this node to a container of its own;
	// those that it has go on.
	Withdraw(ctx context.Context, id string) error
}

// drain has no new connection reach the container, and lets those arrive that
// are on their way. The managers have the other nodes do so before they ask for
// the stop; this is for what they do not ask for.
func (c *Controller) drain(ctx context.Context, id string) error {
	if _, overlays := places(c.a); len(overlays) == 0 {
		return nil
	}
	if err := c.x.Networks.Withdraw(ctx, id); err != nil && !errdefs.IsNotFound(err) {
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
