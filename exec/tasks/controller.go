package tasks

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"skep/exec/containers"
	"skep/store/object"
)

// healthPoll is how often a container with a health check is looked at.
const healthPoll = 200 * time.Millisecond

// defaultGrace is how long a task may take to stop if its service does not say.
const defaultGrace = 10 * time.Second

// errUnhealthy is the cause of a task's end when its health check failed.
var errUnhealthy = errors.New("dockerexec: unhealthy container")

// Containers is what a task needs of the node's containers.
type Containers interface {
	CreateWith(ctx context.Context, name string, req container.CreateRequest, x containers.Extra) (container.CreateResponse, error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref, signal string, timeout *time.Duration) error
	Remove(ctx context.Context, ref string, force, volumes bool) error
	Wait(ctx context.Context, ref string, until container.WaitCondition) (func(context.Context) (container.WaitResponse, error), error)
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	List(ctx context.Context, all, size bool) ([]container.Summary, error)
}

// Images is what a task needs of the node's images.
type Images interface {
	Pull(ctx context.Context, ref, platform string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error
	Inspect(ctx context.Context, ref string) (image.InspectResponse, error)
}

// Controller drives the container of one task. Its methods are called one at
// a time, but for Shutdown and Remove, which may interrupt the others.
type Controller struct {
	a      *object.Assignment
	name   string
	x      *Executor
	logger *slog.Logger
}

// Prepare pulls the image and creates the container.
func (c *Controller) Prepare(ctx context.Context) error {
	if _, err := c.x.Containers.Inspect(ctx, c.name, false); err == nil {
		return nil
	}
	req, err := request(c.a)
	if err != nil {
		return err
	}
	fs, err := files(c.a)
	if err != nil {
		return err
	}
	if err = c.pull(ctx, req.Image); err != nil {
		return err
	}
	ports, overlays := places(c.a)
	_, err = c.x.Containers.CreateWith(ctx, c.name, req, containers.Extra{
		Files:     fs,
		Ports:     ports,
		Overlays:  overlays,
		StopGrace: c.grace(),
	})
	if errdefs.IsConflict(err) || errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// pull brings the image to this node. One that is here and named by digest is
// not asked for again; one that cannot be pulled but is here will do.
func (c *Controller) pull(ctx context.Context, ref string) error {
	_, missing := c.x.Images.Inspect(ctx, ref)
	if missing == nil && digested(ref) {
		return nil
	}
	err := c.x.Images.Pull(ctx, ref, "", c.a.Revision.Auth, func(jsonstream.Message) {})
	if err != nil && missing == nil && ctx.Err() == nil {
		c.logger.WarnContext(ctx, "could not pull image, using the one that is here", "image", ref, "err", err)
		return nil
	}
	return err
}

// Start starts the container and returns when it can serve: when it is healthy,
// or, without a health check, listens on the ports that it publishes.
func (c *Controller) Start(ctx context.Context) error {
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if err != nil {
		return err
	}
	if in.State == nil || in.State.Status == container.StateCreated {
		if err := c.x.Containers.Start(ctx, c.name); err != nil {
			return err
		}
	}
	if in.Config != nil && checked(in.Config.Healthcheck) {
		return c.awaitHealth(ctx)
	}
	return c.awaitListen(ctx)
}

// awaitHealth returns nil when the container is healthy, and an error when it
// ended or is unhealthy.
func (c *Controller) awaitHealth(ctx context.Context) error {
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for {
		state, err := c.health(ctx)
		switch {
		case err != nil:
			return err
		case state == container.Healthy:
			return nil
		case state == container.Unhealthy:
			return c.unhealthy(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// health is the container's state of health, or an *object.ExitError if it ended.
func (c *Controller) health(ctx context.Context) (container.HealthStatus, error) {
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if err != nil {
		return "", err
	}
	if in.State == nil {
		return container.NoHealthcheck, nil
	}
	if in.State.Status == container.StateExited || in.State.Status == container.StateDead {
		return "", ended(in.State)
	}
	if in.State.Health == nil {
		return container.NoHealthcheck, nil
	}
	return in.State.Health.Status, nil
}

// unhealthy stops the container and says why.
func (c *Controller) unhealthy(ctx context.Context) error {
	if err := c.Shutdown(ctx); err != nil {
		return err
	}
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if err != nil {
		return err
	}
	return &object.ExitError{Code: in.State.ExitCode, Cause: errUnhealthy}
}

// Wait blocks until the container ends: nil when it exited with 0, an
// *object.ExitError otherwise. A container that becomes unhealthy is stopped.
func (c *Controller) Wait(ctx context.Context) error {
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if err != nil {
		return err
	}
	await, err := c.x.Containers.Wait(ctx, c.name, container.WaitConditionNotRunning)
	if err != nil {
		return err
	}
	exits := make(chan error, 1)
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The goroutine ends with the container or with waitCtx.
	go func() {
		_, failed := await(waitCtx)
		exits <- failed
	}()
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	if in.Config == nil || !checked(in.Config.Healthcheck) {
		tick.Stop()
	}
	for {
		select {
		case err = <-exits:
			if err != nil {
				return err
			}
			if in, err = c.x.Containers.Inspect(ctx, c.name, false); err != nil {
				return err
			}
			return ended(in.State)
		case <-tick.C:
			if state, err := c.health(ctx); err == nil && state == container.Unhealthy {
				return c.unhealthy(ctx)
			}
		}
	}
}

// Shutdown stops the container: its stop signal, then, after its grace period, a
// kill.
func (c *Controller) Shutdown(ctx context.Context) error {
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if in.State == nil || !in.State.Running {
		return nil
	}
	grace := c.grace()
	err = c.x.Containers.Stop(ctx, c.name, "", &grace)
	if errdefs.IsNotFound(err) || errdefs.IsNotModified(err) {
		return nil
	}
	return err
}

// Remove removes the container and its anonymous volumes.
func (c *Controller) Remove(ctx context.Context) error {
	err := c.x.Containers.Remove(ctx, c.name, true, true)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Status is what the API shows of the container: nil when there is none.
func (c *Controller) Status(ctx context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	in, err := c.x.Containers.Inspect(ctx, c.name, false)
	if errdefs.IsNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	st := &swarm.ContainerStatus{ContainerID: in.ID}
	if in.State != nil {
		st.PID, st.ExitCode = in.State.Pid, in.State.ExitCode
	}
	return st, hostPorts(c.a, in), nil
}

func (c *Controller) grace() time.Duration {
	if g := c.a.Revision.Spec.ContainerSpec.StopGracePeriod; g != nil {
		return *g
	}
	return defaultGrace
}

// hostPorts are the host-mode ports with the node's ports that were chosen.
func hostPorts(a *object.Assignment, in container.InspectResponse) []swarm.PortConfig {
	var out []swarm.PortConfig
	for _, p := range a.Task.Ports {
		if p.PublishMode != swarm.PortConfigPublishModeHost {
			continue
		}
		if p.PublishedPort == 0 && in.NetworkSettings != nil {
			p.PublishedPort = chosen(p, in.NetworkSettings)
		}
		out = append(out, p)
	}
	return out
}

func chosen(p swarm.PortConfig, n *container.NetworkSettings) uint32 {
	for port, bindings := range n.Ports {
		if uint32(port.Num()) != p.TargetPort || port.Proto() != p.Protocol {
			continue
		}
		for _, b := range bindings {
			if v, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil {
				return uint32(v)
			}
		}
	}
	return 0
}

// checked reports whether the container has a health check. One that comes
// with the image is known only once the container is created.
func checked(h *container.HealthConfig) bool {
	return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
}

func ended(s *container.State) error {
	if s == nil || (s.ExitCode == 0 && s.Error == "") {
		return nil
	}
	var cause error
	switch {
	case s.OOMKilled:
		cause = errors.New("out of memory")
	case s.Error != "":
		cause = errors.New(s.Error)
	}
	return &object.ExitError{Code: s.ExitCode, Cause: cause}
}
