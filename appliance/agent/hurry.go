package agent

import (
	"context"
	"net"
	"time"
)

// stuck is how long an attempt to reach a manager may have lasted before better
// prospects end it.
const stuck = time.Second

// Hurry has an agent that has no session try again at once: managers that did
// not answer seem to be there again. An attempt that has only just begun is
// left alone for a second.
func (a *Agent) Hurry() { signal(a.hurry) }

// dial connects to the manager that leads, or gives up when it would do better
// to begin anew.
func (a *Agent) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// It ends with the attempt.
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(stuck):
		}
		select {
		case <-ctx.Done():
		case <-a.hurry:
			signal(a.hurry) // so that nobody waits before the next attempt
			cancel()
		}
	}()
	return a.cfg.Dial(ctx)
}
