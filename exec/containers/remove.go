package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

// Remove deletes a container. With force a running one is killed first; with
// volumes those that nobody named go too.
func (e *Engine) Remove(ctx context.Context, ref string, force, volumes bool) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if c.isRemoved() {
		return object.Errorf(errdefs.ErrNotFound, "No such container: %s", ref)
	}
	s := c.status()
	if s.Running && !force {
		switch {
		case s.Paused:
			return object.Errorf(errdefs.ErrConflict, "cannot remove container %q: container is paused and must be unpaused first", ref)
		case s.Restarting:
			return object.Errorf(errdefs.ErrConflict, "cannot remove container %q: container is restarting: stop the container before removing or force remove", ref)
		}
		return object.Errorf(errdefs.ErrConflict, "cannot remove container %q: container is running: stop the container before removing or force remove", ref)
	}
	ctx = context.WithoutCancel(ctx)
	if s.Running {
		if err := e.end(ctx, c); err != nil {
			return err
		}
	}
	return e.remove(ctx, c, volumes)
}

// end kills a container that is to be removed.
func (e *Engine) end(ctx context.Context, c *instance) error {
	c.update(func(s *status) { s.Stopped = true })
	if c.status().Restarting {
		e.halt(ctx, c)
		return nil
	}
	if err := e.signal(c, unix.SIGKILL); err != nil {
		return err
	}
	if err := e.thaw(c); err != nil {
		return err
	}
	if err := e.waitKilled(ctx, c); err != nil {
		return fmt.Errorf("cannot remove container %s: %w", c.id, err)
	}
	return nil
}

// remove deletes a container that does not run. The caller holds op.
func (e *Engine) remove(ctx context.Context, c *instance, volumes bool) error {
	if c.isRemoved() || c.status().Running {
		return nil
	}
	r := c.rec()
	// The record goes first: without it, the rest is a leftover.
	if err := os.Remove(filepath.Join(e.dir(c.id), recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove container: %w", err)
	}
	if err := errors.Join(os.RemoveAll(e.runDir(c.id)), e.forget(&r)); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	for _, m := range r.Mounts {
		if !volumes || !m.Anonymous {
			continue
		}
		if err := e.cfg.Volumes.Remove(ctx, m.Volume, true); err != nil && !errdefs.IsConflict(err) {
			e.cfg.Logger.WarnContext(ctx, "left a volume", "container", c.id[:12], "err", err)
		}
	}
	c.mu.Lock()
	// Who waits for the removal hears how that went, not how the start did.
	c.removed, c.st.Error = true, ""
	for a := range c.waiting {
		a.conn <- nil
		delete(c.waiting, a)
	}
	c.wakeLocked()
	c.mu.Unlock()
	e.tell(c, events.ActionDestroy)
	return nil
}

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if len(name) > 0 && name[0] == '/' {
		name = name[1:]
	}
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if !validName(name) {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	r := c.rec()
	if r.Name == name {
		return invalid("Renaming a container with the same name as its current name")
	}
	if _, err := e.claim(name, c.id); err != nil {
		return err
	}
	old := r.Name
	r.Name = name
	if err := e.saveRecord(&r); err != nil {
		e.release(name)
		return err
	}
	c.mu.Lock()
	c.record.Name = name
	c.mu.Unlock()
	e.release(old)
	e.tell(c, events.ActionRename, "oldName", "/"+old)
	return nil
}

func (e *Engine) release(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.names, name)
}
