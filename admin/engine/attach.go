package engine

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/store/object"
)

// containerAttach joins the client to the container's streams. A container
// that was created and not started yet is waited for: "docker run" attaches
// first, and starts it when it has the reply.
func (a *API) containerAttach(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := a.Containers.Inspect(ctx, r.PathValue("id"), false)
	if err != nil {
		return err
	}
	tty := c.Config != nil && c.Config.Tty
	keys, err := detachKeys(param(r, "detachKeys"), tty)
	if err != nil {
		return err
	}
	if c.State != nil {
		switch {
		case c.State.Paused:
			return object.Errorf(errdefs.ErrConflict, "container %s is paused, unpause the container before attach", r.PathValue("id"))
		case c.State.Restarting:
			return object.Errorf(errdefs.ErrConflict, "container %s is restarting, wait until the container is running", r.PathValue("id"))
		}
	}
	q := wanted{
		stdin: flag(r, "stdin"), stdout: flag(r, "stdout"), stderr: flag(r, "stderr"),
		tty: tty, detachKeys: keys,
	}
	x, err := takeOver(w, r, streamType(r, tty))
	if err != nil {
		return err
	}
	defer x.close()
	s := x.streams(q)
	if flag(r, "logs") {
		x.begin()
		a.replay(r, c, s)
	}
	if !flag(r, "stream") {
		x.begin()
		return nil
	}
	s.Attached = x.begin
	switch err := a.Containers.Attach(ctx, c.ID, s); {
	case x.begun:
		complain(ctx, s, err)
	case err != nil:
		x.refuse(err)
	default:
		x.begin()
	}
	return nil
}

// replay writes what the container has written so far.
func (a *API) replay(r *http.Request, c container.InspectResponse, s object.Streams) {
	q := object.LogQuery{Stdout: s.Stdout != nil, Stderr: s.Stderr != nil, Tail: -1}
	for line, err := range a.Containers.Logs(r.Context(), c.ID, q) {
		if err != nil {
			complain(r.Context(), s, err)
			return
		}
		to := s.Stdout
		if line.Stderr {
			to = s.Stderr
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(line.Text); err != nil {
			return
		}
	}
}
