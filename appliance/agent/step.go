package agent

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// errIdle says that there is nothing to do until the desired state changes;
// errAgain that the step did not come to an end.
var (
	errIdle  = errors.New("nothing to do")
	errAgain = errors.New("try again")
)

// step makes at most one transition of a task:
//
//	assigned → accepted → preparing → ready ┬→ starting → running → complete
//	    │          │          │         │   │      │         │
//	    │          │          │ Prepare │   │desired│ Start   │ Wait
//	    │          │          ▼         │  running  ▼         ▼
//	    │          │       rejected     │       failed or   failed
//	    │          │          │         │       rejected
//	    └──────────┴──────────┴─────────┴── desired shutdown → shutdown
//
// It returns the task's new status, with [errIdle] if it is the same because
// nothing is to be done, or [errAgain] if the step has to be repeated.
func step(ctx context.Context, t *object.Task, c Controller) (swarm.TaskStatus, error) {
	s := t.Status
	if object.Ended(s.State) {
		return s, errIdle
	}
	if object.Rank(t.DesiredState) >= object.Rank(swarm.TaskStateShutdown) {
		if err := c.Shutdown(ctx); err != nil {
			return stay(s, err), errAgain
		}
		return end(ctx, s, swarm.TaskStateShutdown, "shutdown", c), nil
	}
	switch s.State {
	case swarm.TaskStateAssigned:
		return move(s, swarm.TaskStateAccepted, "accepted"), nil
	case swarm.TaskStateAccepted:
		return move(s, swarm.TaskStatePreparing, "preparing"), nil
	case swarm.TaskStatePreparing:
		if err := c.Prepare(ctx); err != nil {
			return fail(ctx, s, swarm.TaskStateRejected, err, c)
		}
		return move(s, swarm.TaskStateReady, "prepared"), nil
	case swarm.TaskStateReady:
		if object.Rank(t.DesiredState) < object.Rank(swarm.TaskStateRunning) {
			return s, errIdle
		}
		return move(s, swarm.TaskStateStarting, "starting"), nil
	case swarm.TaskStateStarting:
		if err := c.Start(ctx); err != nil {
			state := swarm.TaskStateFailed
			if errors.Is(err, object.ErrUnfit) {
				state = swarm.TaskStateRejected
			}
			return fail(ctx, s, state, err, c)
		}
		return observe(ctx, move(s, swarm.TaskStateRunning, "started"), c), nil
	case swarm.TaskStateRunning:
		if err := c.Wait(ctx); err != nil {
			return fail(ctx, s, swarm.TaskStateFailed, err, c)
		}
		return end(ctx, s, swarm.TaskStateComplete, "finished", c), nil
	default:
		return s, errIdle
	}
}

func move(s swarm.TaskStatus, state swarm.TaskState, message string) swarm.TaskStatus {
	s.Timestamp, s.State, s.Message, s.Err = time.Now(), state, message, ""
	return s
}

// end is a move to a state after which nothing comes.
func end(ctx context.Context, s swarm.TaskStatus, state swarm.TaskState, message string, c Controller) swarm.TaskStatus {
	return observe(ctx, move(s, state, message), c)
}

// stay keeps the state and says why it does not change.
func stay(s swarm.TaskStatus, err error) swarm.TaskStatus {
	if errors.Is(err, context.Canceled) || s.Err == err.Error() {
		return s
	}
	s.Timestamp, s.Err = time.Now(), err.Error()
	return s
}

// fail ends the task in state, unless the error may pass. The message remains
// that of the state in which it failed.
func fail(ctx context.Context, s swarm.TaskStatus, state swarm.TaskState, err error, c Controller) (swarm.TaskStatus, error) {
	if errors.Is(err, object.ErrTemporary) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return stay(s, err), errAgain
	}
	s.Timestamp, s.State, s.Err = time.Now(), state, err.Error()
	s = observe(ctx, s, c)
	if exit, ok := errors.AsType[*object.ExitError](err); ok {
		// Without a status of its own the container is the one of the last.
		cs := swarm.ContainerStatus{}
		if s.ContainerStatus != nil {
			cs = *s.ContainerStatus
		}
		cs.PID, cs.ExitCode = 0, exit.Code
		s.ContainerStatus = &cs
	}
	return s, nil
}

// observe fills in what is known of the container, for the API to show.
func observe(ctx context.Context, s swarm.TaskStatus, c Controller) swarm.TaskStatus {
	cs, ports, err := c.Status(ctx)
	if err != nil || cs == nil {
		return s // a task may well have no container (any more)
	}
	s.ContainerStatus = cs
	if len(ports) > 0 {
		s.PortStatus.Ports = ports
	}
	return s
}
