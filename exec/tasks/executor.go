package tasks

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// Executor makes controllers for the tasks of this node.
type Executor struct {
	Containers  Containers
	Images      Images
	Balancer    Balancer
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

// TaskLogs reads what the task's container on this node wrote.
func (x *Executor) TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		list, err := x.Containers.List(ctx, true, false)
		if err != nil {
			yield(object.LogLine{}, err)
			return
		}
		for _, c := range list {
			if c.Labels[labelTaskID] != task.ID {
				continue
			}
			x.Logs.Logs(ctx, c.ID, q)(yield)
			return
		}
	}
}

// digested reports whether ref names an image by its content.
func digested(ref string) bool { return strings.Contains(ref, "@sha256:") }
