package tasks

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// startPoll is how often a container that is to be followed is looked at until
// it starts.
const startPoll = 50 * time.Millisecond

// Executor makes controllers for the tasks of this node.
type Executor struct {
	Containers  Containers
	Images      Images
	Logs        Logs
	Description func(ctx context.Context) (swarm.NodeDescription, error)
	Logger      *slog.Logger
}

// Logs reads what a container wrote.
type Logs interface {
	Logs(ctx context.Context, ref string, q object.LogQuery) iter.Seq2[object.LogLine, error]
}

// Describe is what the scheduler learns of this node.
func (x *Executor) Describe(ctx context.Context) (swarm.NodeDescription, error) {
	return x.Description(ctx)
}

// Controller makes the controller of one task. It does not act.
func (x *Executor) Controller(a *object.Assignment) (*Controller, error) {
	if a.Revision == nil || a.Revision.Spec.ContainerSpec == nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "task %s has no container spec", a.Task.ID)
	}
	return &Controller{
		a:      a,
		name:   containerName(a),
		x:      x,
		logger: x.Logger.With("task", a.Task.ID, "service", a.Revision.Service.Name),
	}, nil
}

// Retain removes the containers of tasks that are not among ids: what is left
// of tasks that went while this node was not running.
func (x *Executor) Retain(ctx context.Context, ids []string) error {
	list, err := x.Containers.List(ctx, true, false)
	if err != nil {
		return err
	}
	for _, c := range list {
		id, ours := c.Labels[labelTaskID]
		if !ours || slices.Contains(ids, id) {
			continue
		}
		x.Logger.InfoContext(ctx, "removing container of a task that is gone", "task", id, "container", c.ID)
		if err := x.Containers.Remove(ctx, c.ID, true, true); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// TaskLogs reads what the task's container on this node wrote. Following waits
// for a container that is not started yet.
func (x *Executor) TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		id, err := x.containerOf(ctx, task.ID)
		if err == nil && id != "" && q.Follow {
			err = x.awaitStart(ctx, id)
		}
		switch {
		case err != nil:
			yield(object.LogLine{}, err)
		case id != "":
			x.Logs.Logs(ctx, id, q)(yield)
		}
	}
}

// containerOf is the ID of a task's container, empty if it has none here.
func (x *Executor) containerOf(ctx context.Context, task string) (string, error) {
	list, err := x.Containers.List(ctx, true, false)
	if err != nil {
		return "", err
	}
	for _, c := range list {
		if c.Labels[labelTaskID] == task {
			return c.ID, nil
		}
	}
	return "", nil
}

// awaitStart returns when the container was started, or is gone.
func (x *Executor) awaitStart(ctx context.Context, id string) error {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		in, err := x.Containers.Inspect(ctx, id, false)
		if err != nil {
			return err
		}
		if in.State == nil || in.State.Status != container.StateCreated {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// digested reports whether ref names an image by its content.
func digested(ref string) bool { return strings.Contains(ref, "@sha256:") }
