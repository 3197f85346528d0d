package updater_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/updater"
	"skep/store/object"
)

var start = time.Unix(1e9, 0)

func at(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }

// fresh is a task of the new revision, made at start; since 0 it never ran.
func fresh(state swarm.TaskState, since, applied int) *object.Task {
	t := &object.Task{ID: "t", DesiredState: swarm.TaskStateRunning}
	t.CreatedAt, t.Status.State = start, state
	if since > 0 {
		t.RunningSince = at(since).UnixNano()
	}
	t.AppliedAt = at(applied).UnixNano()
	if object.Ended(state) {
		t.DesiredState = swarm.TaskStateShutdown
	}
	return t
}

func TestPlan(t *testing.T) {
	dirty := updater.Slot{Dirty: true, Live: true}
	clean := func(tasks ...*object.Task) updater.Slot { return updater.Slot{Live: true, New: tasks} }
	running := func(since int) updater.Slot { return clean(fresh(swarm.TaskStateRunning, since, since)) }
	updating := &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &start, Message: "update in progress"}
	rolling := &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: &start, Message: "manually requested rollback"}
	now := at(20)
	failing := updater.Slot{Dirty: true, New: []*object.Task{fresh(swarm.TaskStateRejected, 0, 1)}}
	tests := []struct {
		name   string
		config *swarm.UpdateConfig
		status *swarm.UpdateStatus
		slots  []updater.Slot
		want   updater.Decision
	}{
		{name: "nothing to do", slots: []updater.Slot{running(1)}},
		{
			name: "begins", slots: []updater.Slot{dirty, dirty},
			want: updater.Decision{Replace: []int{0}, Status: &swarm.UpdateStatus{State: "updating", StartedAt: &now, Message: "update in progress"}},
		},
		{
			name: "what does not run first", status: updating, slots: []updater.Slot{dirty, {Dirty: true}},
			want: updater.Decision{Replace: []int{1}},
		},
		{
			name: "waits for the one that starts", status: updating,
			slots: []updater.Slot{clean(fresh(swarm.TaskStateStarting, 0, 0)), dirty},
			want:  updater.Decision{Replace: []int{}, Next: at(3600)},
		},
		{
			name: "but not for ever", status: updating,
			slots: []updater.Slot{clean(fresh(swarm.TaskStateStarting, 0, 20-3600)), dirty},
			want: updater.Decision{Status: &swarm.UpdateStatus{
				State: "paused", StartedAt: &start, Message: "update paused due to failure or early termination of task t",
			}},
		},
		{
			name: "nor when failures are ignored", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "continue"},
			slots: []updater.Slot{clean(fresh(swarm.TaskStatePreparing, 0, 20-3600)), dirty},
			want:  updater.Decision{Replace: []int{1}},
		},
		{
			name: "it waits for a node as long as that takes", status: updating,
			slots: []updater.Slot{clean(fresh(swarm.TaskStatePending, 0, 20-3600)), dirty},
			want:  updater.Decision{Replace: []int{}},
		},
		{
			name: "several at once", status: updating, config: &swarm.UpdateConfig{Parallelism: 2},
			slots: []updater.Slot{clean(fresh(swarm.TaskStateStarting, 0, 0)), dirty, dirty},
			want:  updater.Decision{Replace: []int{1}, Next: at(3600)},
		},
		{
			name: "all at once", status: updating, config: &swarm.UpdateConfig{},
			slots: []updater.Slot{dirty, dirty, dirty}, want: updater.Decision{Replace: []int{0, 1, 2}},
		},
		{
			name: "waits for the delay", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, Delay: 10 * time.Second},
			slots: []updater.Slot{running(15), dirty}, want: updater.Decision{Replace: []int{}, Next: at(25)},
		},
		{
			name: "after the delay", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, Delay: 5 * time.Second},
			slots: []updater.Slot{running(15), dirty}, want: updater.Decision{Replace: []int{1}},
		},
		{
			name: "watches for a while", status: updating, slots: []updater.Slot{running(18), running(3)},
			want: updater.Decision{Next: at(23)},
		},
		{
			name: "completes", status: updating, slots: []updater.Slot{running(15), running(3)},
			want: updater.Decision{Status: &swarm.UpdateStatus{State: "completed", StartedAt: &start, CompletedAt: &now, Message: "update completed"}},
		},
		{
			name: "completes a rollback", status: rolling, slots: []updater.Slot{running(15)},
			want: updater.Decision{Status: &swarm.UpdateStatus{State: "rollback_completed", StartedAt: &start, CompletedAt: &now, Message: "rollback completed"}},
		},
		{
			name: "pauses when a task dies before it runs", status: updating, slots: []updater.Slot{failing, dirty},
			want: updater.Decision{Status: &swarm.UpdateStatus{
				State: "paused", StartedAt: &start, Message: "update paused due to failure or early termination of task t",
			}},
		},
		{
			name: "pauses a rollback", status: rolling, slots: []updater.Slot{failing, dirty},
			want: updater.Decision{Status: &swarm.UpdateStatus{
				State: "rollback_paused", StartedAt: &start, Message: "rollback paused due to failure or early termination of task t",
			}},
		},
		{
			name: "pauses when a task dies early", status: updating,
			slots: []updater.Slot{{New: []*object.Task{fresh(swarm.TaskStateFailed, 2, 6)}}, dirty},
			want: updater.Decision{Status: &swarm.UpdateStatus{
				State: "paused", StartedAt: &start, Message: "update paused due to failure or early termination of task t",
			}},
		},
		{
			name: "a task that dies late is no failure", status: updating,
			slots: []updater.Slot{{New: []*object.Task{fresh(swarm.TaskStateFailed, 2, 9)}}, dirty},
			want:  updater.Decision{Replace: []int{1}},
		},
		{
			name: "failures that are tolerated", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, MaxFailureRatio: 0.5},
			slots: []updater.Slot{failing, dirty}, want: updater.Decision{Replace: []int{0}},
		},
		{
			name: "failures that are ignored", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "continue"},
			slots: []updater.Slot{failing, dirty}, want: updater.Decision{Replace: []int{0}},
		},
		{
			name: "rolls back", status: updating, config: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "rollback"},
			slots: []updater.Slot{failing, dirty},
			want:  updater.Decision{Rollback: "update rolled back due to failure or early termination of task t"},
		},
		{name: "paused", status: &swarm.UpdateStatus{State: "paused", StartedAt: &start}, slots: []updater.Slot{dirty}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			svc := &object.Service{}
			svc.UpdateStatus = tt.status
			svc.Spec.UpdateConfig, svc.Spec.RollbackConfig = tt.config, tt.config
			svc.PreviousSpec = &swarm.ServiceSpec{}
			if diff := cmp.Diff(tt.want, updater.Plan(svc, tt.slots, now)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlan_NeverTooMany checks that no state of a service lets more slots
// change at once than it allows.
func TestPlan_NeverTooMany(t *testing.T) {
	kinds := []updater.Slot{
		{Dirty: true, Live: true},
		{Dirty: true},
		{Live: true, New: []*object.Task{fresh(swarm.TaskStateRunning, 1, 1)}},
		{New: []*object.Task{fresh(swarm.TaskStatePreparing, 0, 0)}},
		{New: []*object.Task{fresh(swarm.TaskStatePending, 0, 0)}},
	}
	for parallelism := uint64(1); parallelism < 4; parallelism++ {
		svc := &object.Service{}
		svc.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &start}
		svc.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: parallelism}
		for n := range 5 * 5 * 5 * 5 {
			var slots []updater.Slot
			busy := 0
			for i := n; len(slots) < 4; i /= 5 {
				slots = append(slots, kinds[i%5])
				if i%5 > 2 {
					busy++
				}
			}
			d := updater.Plan(svc, slots, at(20))
			if len(d.Replace) > 0 && len(d.Replace)+busy > int(parallelism) {
				t.Fatalf("parallelism %d, %d busy: %d more are changed", parallelism, busy, len(d.Replace))
			}
			for _, i := range d.Replace {
				if !slots[i].Dirty {
					t.Fatalf("slot %d is changed, though it is not dirty", i)
				}
			}
		}
	}
}
