package containers

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runc/libcontainer"

	"skep/store/object"
)

// Pause freezes all of a container's processes.
func (e *Engine) Pause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, true)
}

// Unpause lets them go on.
func (e *Engine) Unpause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, false)
}

func (e *Engine) freeze(ctx context.Context, ref string, on bool) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err = c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	s := c.status()
	switch {
	case on && (!s.Running || s.Restarting):
		return object.Errorf(errdefs.ErrConflict, "container %s is not running", c.id)
	case on && s.Paused:
		return object.Errorf(errdefs.ErrConflict, "container %s is already paused", c.id)
	case !on && !s.Paused:
		return object.Errorf(errdefs.ErrInvalidArgument, "container %s is not paused", c.id)
	}
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	verb, action := box.Pause, events.ActionPause
	if !on {
		verb, action = box.Resume, events.ActionUnPause
	}
	if err := verb(); err != nil {
		return fmt.Errorf("%s container %s: %w", action, c.id, err)
	}
	s = c.update(func(s *status) { s.Paused = on })
	e.tell(c, action)
	return e.saveState(c.id, &s)
}
