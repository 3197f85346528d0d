package containers

import (
	"context"
	"time"
)

const (
	// drainDelay lies between the last connection that a container is given and its
	// stop signal: what is on its way must arrive at an open socket.
	drainDelay = 100 * time.Millisecond
	// drainWait is how long it may take until it is given no more.
	drainWait = 2 * time.Second
)

// drain has no new connection reach the container by networks of the swarm, and
// lets those arrive that are on their way. For a stop that the managers asked
// for they have all nodes do so before; this is for the others.
func (e *Engine) drain(ctx context.Context, c *instance) {
	at, _ := e.cfg.Networks.Attachment(c.id)
	if len(at.Overlays) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWait)
	defer cancel()
	if err := e.cfg.Networks.Withdraw(ctx, c.id); err != nil {
		// It is stopped all the same.
		e.cfg.Logger.WarnContext(ctx, "still led connections to a container that stops", "container", c.id[:12], "err", err)
	}
	t := time.NewTimer(drainDelay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.stopped:
	}
}
