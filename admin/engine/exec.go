package engine

import (
	"context"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/admin"
	"skep/store/object"
)

func (a *API) execCreate(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[container.ExecCreateRequest](r)
	if err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return invalid("No exec command specified")
	}
	if _, err = detachKeys(req.DetachKeys, req.Tty); err != nil {
		return err
	}
	if minorOf(r) < 42 {
		req.ConsoleSize = nil
	}
	id, err := a.Containers.CreateExec(r.Context(), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	id = a.execName(r.Context(), r.PathValue("id"), id)
	admin.NameObject(r.Context(), id)
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// execStart runs the process on the client's connection. What is known to be
// wrong before is answered with a status; later it is written to the stream.
func (a *API) execStart(w http.ResponseWriter, r *http.Request) error {
	ctx, id := r.Context(), r.PathValue("id")
	req, err := decode[container.ExecStartRequest](r)
	if err != nil {
		return err
	}
	e, err := a.startable(ctx, id)
	if err != nil {
		return err
	}
	var height, width uint
	if req.ConsoleSize != nil && minorOf(r) >= 42 {
		if !req.Tty {
			return invalid("console size is only supported when TTY is enabled")
		}
		height, width = req.ConsoleSize[0], req.ConsoleSize[1]
	}
	if req.Detach {
		if err = a.Containers.StartExec(ctx, id, true, height, width, object.Streams{}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	q := wanted{stdin: e.OpenStdin, stdout: e.OpenStdout, stderr: e.OpenStderr}
	if e.ProcessConfig != nil {
		q.tty = e.ProcessConfig.Tty
	}
	if q.detachKeys, err = detachKeys(string(e.DetachKeys), q.tty); err != nil {
		return err
	}
	x, err := takeOver(w, r, streamType(r, q.tty))
	if err != nil {
		return err
	}
	defer x.close()
	x.begin()
	s := x.streams(q)
	complain(ctx, s, a.Containers.StartExec(ctx, id, false, height, width, s))
	return nil
}

// startable is the exec, if it can still be started.
func (a *API) startable(ctx context.Context, id string) (container.ExecInspectResponse, error) {
	e, err := a.Containers.InspectExec(ctx, id)
	switch {
	case err != nil:
		return e, err
	case e.Running:
		return e, object.Errorf(errdefs.ErrConflict, "Error: Exec command %s is already running", id)
	case e.ExitCode != nil:
		return e, object.Errorf(errdefs.ErrConflict, "Error: Exec command %s has already run", id)
	}
	c, err := a.Containers.Inspect(ctx, e.ContainerID, false)
	switch {
	case err != nil:
		return e, err
	case c.State != nil && c.State.Paused:
		return e, object.Errorf(errdefs.ErrConflict, "container %s is paused, unpause the container before exec", c.ID)
	case c.State != nil && !c.State.Running:
		return e, object.Errorf(errdefs.ErrConflict, "container %s is not running", c.ID)
	}
	return e, nil
}

func (a *API) execInspect(w http.ResponseWriter, r *http.Request) error {
	e, err := a.Containers.InspectExec(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	tty := e.ProcessConfig != nil && e.ProcessConfig.Tty
	if e.DetachKeys, err = detachKeys(string(e.DetachKeys), tty); err != nil {
		return err
	}
	e.ID = a.execName(r.Context(), e.ContainerID, e.ID)
	return writeJSON(w, http.StatusOK, e)
}

func (a *API) execResize(_ http.ResponseWriter, r *http.Request) error {
	height, width, err := sizeParams(r)
	if err != nil {
		return err
	}
	return a.Containers.ResizeExec(r.Context(), r.PathValue("id"), height, width)
}
