package containers

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/store/object"
)

// Wait registers at once and returns a function that blocks until the
// condition holds.
func (e *Engine) Wait(_ context.Context, ref string, until container.WaitCondition) (func(context.Context) (container.WaitResponse, error), error) {
	c, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	exits := c.exits
	c.mu.Unlock()
	var done func() bool
	switch until {
	case "", container.WaitConditionNotRunning:
		done = func() bool { return !c.st.Running || c.removed }
	case container.WaitConditionNextExit:
		done = func() bool { return c.exits > exits && !c.st.Restarting || c.removed }
	case container.WaitConditionRemoved:
		done = func() bool { return c.removed }
	default:
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "invalid condition: %q", until)
	}
	return func(ctx context.Context) (container.WaitResponse, error) {
		if err := c.await(ctx, done); err != nil {
			return container.WaitResponse{}, err
		}
		s := c.status()
		r := container.WaitResponse{StatusCode: int64(s.ExitCode)}
		if s.Error != "" {
			r.Error = &container.WaitExitError{Message: s.Error}
		}
		return r, nil
	}, nil
}
