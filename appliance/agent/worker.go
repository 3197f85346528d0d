package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// again is how long a worker waits before it repeats a step.
const again = time.Second

// worker runs one task.
type worker struct {
	agent *Agent
	wake  chan struct{} // size 1: desired or removed has changed
	data  []byte        // the task as it was assigned; guarded by the agent's mu

	mu         sync.Mutex // guards all below
	assignment *object.Assignment
	status     swarm.TaskStatus
	removed    bool
	interrupt  context.CancelFunc // ends the step under way; nil if it must not be

	controller Controller // owned by run
}

func newWorker(a *Agent, as *object.Assignment, data []byte) *worker {
	return &worker{agent: a, wake: make(chan struct{}, 1), data: data, assignment: as, status: as.Task.Status}
}

// update raises the desired state; it never goes back.
func (w *worker) update(as *object.Assignment, data []byte) {
	w.data = data
	w.mu.Lock()
	defer w.mu.Unlock()
	if object.Rank(as.Task.DesiredState) <= object.Rank(w.assignment.Task.DesiredState) {
		return
	}
	w.assignment = as
	if object.Ended(as.Task.DesiredState) {
		w.stopLocked()
	}
	signal(w.wake)
}

// remove ends the task and its worker.
func (w *worker) remove() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.removed {
		w.removed = true
		w.stopLocked()
		signal(w.wake)
	}
}

func (w *worker) stopLocked() {
	if w.interrupt != nil {
		w.interrupt()
	}
}

// begin is the task as it is now, and a context for the next step that ends
// when the task is to stop.
func (w *worker) begin(ctx context.Context) (t object.Task, as *object.Assignment, removed bool, step context.Context, done context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	as = w.assignment
	t = *as.Task
	t.Status = w.status
	if w.removed {
		t.DesiredState = swarm.TaskStateRemove
	}
	step, cancel := context.WithCancel(ctx)
	if !object.Ended(t.DesiredState) {
		w.interrupt = cancel
	}
	return t, as, w.removed, step, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.interrupt = nil
		cancel()
	}
}

// run takes the task from step to step until it is removed.
func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		t, as, removed, sctx, done := w.begin(ctx)
		if removed && object.Ended(t.Status.State) {
			err := w.clean(ctx, as)
			done()
			if err == nil {
				w.agent.gone(t.ID)
				return
			}
			w.agent.cfg.Logger.WarnContext(ctx, "task not removed", "task", t.ID, "err", err)
			w.pause(ctx)
			continue
		}
		next, err := w.advance(sctx, &t, as)
		cut := sctx.Err() != nil
		done()
		if ctx.Err() != nil {
			break
		}
		if cut {
			continue // what a step makes of its interruption is not the task's
		}
		w.set(next)
		switch {
		case errors.Is(err, errIdle):
			select {
			case <-ctx.Done():
			case <-w.wake:
			}
		case errors.Is(err, errAgain):
			w.pause(ctx)
		}
	}
}

// advance is one step, with a controller made if there is none.
func (w *worker) advance(ctx context.Context, t *object.Task, as *object.Assignment) (swarm.TaskStatus, error) {
	if object.Ended(t.Status.State) {
		return t.Status, errIdle
	}
	if err := w.control(as); err != nil {
		s := t.Status
		s.Timestamp, s.Message, s.Err = time.Now(), "resolving controller failed", err.Error()
		s.State = swarm.TaskStateRejected
		if object.Rank(t.Status.State) >= object.Rank(swarm.TaskStateStarting) {
			s.State = swarm.TaskStateFailed
		}
		return s, nil
	}
	return step(ctx, t, w.controller)
}

func (w *worker) control(as *object.Assignment) (err error) {
	if w.controller == nil {
		w.controller, err = w.agent.cfg.Executor.Controller(as)
	}
	return err
}

func (w *worker) clean(ctx context.Context, as *object.Assignment) error {
	if err := w.control(as); err != nil {
		return err
	}
	return w.controller.Remove(ctx)
}

// set stores and tells a new status.
func (w *worker) set(s swarm.TaskStatus) {
	w.mu.Lock()
	same := w.status.State == s.State && w.status.Err == s.Err && w.status.Message == s.Message
	if !same {
		w.status = s
	}
	id := w.assignment.Task.ID
	w.mu.Unlock()
	if !same {
		w.agent.told(id, s)
		w.agent.cfg.Logger.Debug("task moved", "task", id, "state", string(s.State), "err", s.Err)
	}
}

func (w *worker) current() swarm.TaskStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// task is the task as it is now.
func (w *worker) task() *object.Task {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := *w.assignment.Task
	t.Status = w.status
	return &t
}

// pause waits before a step is repeated, or until the task is to do another.
func (w *worker) pause(ctx context.Context) {
	t := time.NewTimer(again)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-w.wake:
	case <-t.C:
	}
}
