// Package updater decides which slots of a service are changed to its new
// revision now, and how far an update is.
//
// It keeps no state: what an update did is read from the tasks it made, so a
// new leader goes on where the old one stopped. It says which slots to replace;
// the orchestrator does it. An update that fails pauses or is rolled back, as
// the service says; a rollback that fails always pauses. A task that takes an
// hour for one state on its way to run has failed, for an update.
package updater

import (
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

const (
	defaultMonitor = 5 * time.Second
	// stuck is how long a task may be in one state on its way to run before it
	// counts as failed, beside the time that its health check gives it. A task
	// that waits for a node is not on its way: that says why, and may well be
	// meant.
	stuck = time.Hour

	msgUpdating   = "update in progress"
	msgCompleted  = "update completed"
	msgRolledBack = "rollback completed"
	msgPaused     = "update paused due to failure or early termination of task %s"
	msgRollPaused = "rollback paused due to failure or early termination of task %s"
	msgRollback   = "update rolled back due to failure or early termination of task %s"
)

// Slot is one slot of a service as an update sees it.
type Slot struct {
	// Dirty: none of the slot's tasks that are to run is of the new revision.
	Dirty bool
	// Live: a task of the slot is running.
	Live bool
	// New are the slot's tasks of the new revision, dead ones too.
	New []*object.Task
}

// Decision is what an update does next.
type Decision struct {
	// Replace holds the indexes of the slots to change now.
	Replace []int
	// Status is the service's new update status; nil leaves it as it is.
	Status *swarm.UpdateStatus
	// Rollback, if not empty, says that the service goes back to its previous
	// spec, and why. Nothing else is to be done then.
	Rollback string
	// Next is when time alone may change the decision; zero is never.
	Next time.Time
}

// Config is the configuration that is in force, with its defaults.
func Config(svc *object.Service) swarm.UpdateConfig {
	c := svc.Spec.UpdateConfig
	if rollingBack(svc.UpdateStatus) {
		c = svc.Spec.RollbackConfig
	}
	if c == nil {
		c = &swarm.UpdateConfig{Parallelism: 1}
	}
	out := *c
	if out.Monitor == 0 {
		out.Monitor = defaultMonitor
	}
	if out.Delay >= out.Monitor {
		out.Monitor = out.Delay + time.Second
	}
	if out.Order == "" {
		out.Order = swarm.UpdateOrderStopFirst
	}
	if out.FailureAction == "" {
		out.FailureAction = swarm.UpdateFailureActionPause
	}
	return out
}

func rollingBack(s *swarm.UpdateStatus) bool {
	return s != nil && (s.State == swarm.UpdateStateRollbackStarted || s.State == swarm.UpdateStateRollbackPaused)
}

// Active reports whether an update goes on.
func Active(s *swarm.UpdateStatus) bool {
	return s != nil && (s.State == swarm.UpdateStateUpdating || s.State == swarm.UpdateStateRollbackStarted)
}

// Paused reports whether an update stopped before its end.
func Paused(s *swarm.UpdateStatus) bool {
	return s != nil && (s.State == swarm.UpdateStatePaused || s.State == swarm.UpdateStateRollbackPaused)
}

// Plan decides on the next step of a service's update.
func Plan(svc *object.Service, slots []Slot, now time.Time) Decision {
	var dirty []int
	for _, running := range []bool{false, true} { // what does not run loses nothing
		for i, s := range slots {
			if s.Dirty && s.Live == running {
				dirty = append(dirty, i)
			}
		}
	}
	status := svc.UpdateStatus
	if Paused(status) || (!Active(status) && len(dirty) == 0) {
		return Decision{}
	}
	var d Decision
	if !Active(status) || status.StartedAt == nil {
		s := swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &now, Message: msgUpdating}
		if Active(status) {
			s.State, s.Message = status.State, status.Message
		}
		status, d.Status = &s, &s
	}
	cfg := Config(svc)
	p := look(slots, *status.StartedAt, cfg, patience(svc), now)
	if p.failed != nil && cfg.FailureAction != swarm.UpdateFailureActionContinue &&
		float32(p.failures)/float32(max(1, p.changed+len(dirty))) > cfg.MaxFailureRatio {
		if cfg.FailureAction == swarm.UpdateFailureActionRollback && svc.PreviousSpec != nil && !rollingBack(status) {
			return Decision{Rollback: fmt.Sprintf(msgRollback, p.failed.ID)}
		}
		d.Status = pause(*status, p.failed.ID)
		return d
	}
	d.Next = p.next
	if len(dirty) == 0 && p.busy == 0 {
		end := p.lastRunning.Add(cfg.Monitor)
		if p.lastRunning.IsZero() || !end.After(now) {
			d.Status = complete(*status, now)
			return d
		}
		d.Next = end
		return d
	}
	room := len(dirty)
	if cfg.Parallelism > 0 {
		room = min(room, max(0, int(min(cfg.Parallelism, 1<<30))-p.busy))
	}
	d.Replace = dirty[:room]
	return d
}

// progress is what an update did so far.
type progress struct {
	changed     int          // slots with a task of this update
	busy        int          // slots that are being changed, or in the delay after it
	failures    int          // tasks of this update that failed
	failed      *object.Task // the last of them
	lastRunning time.Time    // when the last slot was done
	next        time.Time
	stuck       time.Duration // how long a task may take for one state
}

func (p *progress) wake(at time.Time) {
	if p.next.IsZero() || !at.IsZero() && at.Before(p.next) {
		p.next = at
	}
}

// patience is when a task that does not run yet has failed, zero if never.
func (p *progress) patience(t *object.Task) time.Time {
	rank := object.Rank(t.Status.State)
	if rank < object.Rank(swarm.TaskStateAssigned) || rank >= object.Rank(swarm.TaskStateRunning) ||
		t.DesiredState != swarm.TaskStateRunning {
		return time.Time{}
	}
	since := t.Status.Timestamp // when it was assigned
	if t.AppliedAt != 0 {
		since = time.Unix(0, t.AppliedAt)
	}
	return since.Add(p.stuck)
}

func look(slots []Slot, started time.Time, cfg swarm.UpdateConfig, stuck time.Duration, now time.Time) progress {
	p := progress{stuck: stuck}
	for _, s := range slots {
		touched, busy := false, false
		for _, t := range s.New {
			if t.CreatedAt.Before(started) {
				continue
			}
			touched = true
			if failed(t, cfg.Monitor) {
				p.failures++
				p.failed = t
			}
			if object.Rank(t.DesiredState) > object.Rank(swarm.TaskStateRunning) {
				continue
			}
			at := runningSince(t)
			if at.IsZero() {
				if end := p.patience(t); end.IsZero() || end.After(now) {
					busy = true
					p.wake(end)
				} else {
					p.failures++
					p.failed = t
				}
				continue
			}
			if at.After(p.lastRunning) {
				p.lastRunning = at
			}
			if free := at.Add(cfg.Delay); free.After(now) {
				busy = true
				p.wake(free)
			}
		}
		if touched {
			p.changed++
		}
		if busy {
			p.busy++
		}
	}
	return p
}

// patience is how long a task of the service may be in one state.
func patience(svc *object.Service) time.Duration {
	if c := svc.Spec.TaskTemplate.ContainerSpec; c != nil && c.Healthcheck != nil {
		h := c.Healthcheck
		return stuck + h.StartPeriod + time.Duration(max(1, h.Retries))*(h.Interval+h.Timeout)
	}
	return stuck
}

// runningSince is when a task began to run, or zero if it does not run.
func runningSince(t *object.Task) time.Time {
	if t.Status.State != swarm.TaskStateRunning {
		return time.Time{}
	}
	if t.RunningSince != 0 {
		return time.Unix(0, t.RunningSince)
	}
	return t.Status.Timestamp
}

// failed reports whether a task ended by itself before it ran, or within the
// monitor period after that.
func failed(t *object.Task, monitor time.Duration) bool {
	switch t.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete:
	default:
		return false
	}
	return t.RunningSince == 0 || t.AppliedAt-t.RunningSince <= int64(monitor)
}

func pause(s swarm.UpdateStatus, task string) *swarm.UpdateStatus {
	if s.State == swarm.UpdateStateRollbackStarted {
		s.State, s.Message = swarm.UpdateStateRollbackPaused, fmt.Sprintf(msgRollPaused, task)
		return &s
	}
	s.State, s.Message = swarm.UpdateStatePaused, fmt.Sprintf(msgPaused, task)
	return &s
}

func complete(s swarm.UpdateStatus, now time.Time) *swarm.UpdateStatus {
	s.CompletedAt = &now
	if s.State == swarm.UpdateStateRollbackStarted {
		s.State, s.Message = swarm.UpdateStateRollbackCompleted, msgRolledBack
		return &s
	}
	s.State, s.Message = swarm.UpdateStateCompleted, msgCompleted
	return &s
}
