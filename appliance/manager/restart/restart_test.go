package restart_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/restart"
	"skep/store/object"
)

var start = time.Unix(1e9, 0)

func at(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }

// dead is a task made at a time that ended a second later.
func dead(made int, state swarm.TaskState) *object.Task {
	t := &object.Task{AppliedAt: at(made + 1).UnixNano()}
	t.CreatedAt, t.Status.State = at(made), state
	return t
}

func TestAllowed(t *testing.T) {
	const failed, complete, shutdown = swarm.TaskStateFailed, swarm.TaskStateComplete, swarm.TaskStateShutdown
	limit := func(n uint64, window time.Duration) *swarm.RestartPolicy {
		return &swarm.RestartPolicy{MaxAttempts: &n, Window: &window}
	}
	tests := []struct {
		name   string
		policy *swarm.RestartPolicy
		tried  []*object.Task // the last one is the one that ended now
		want   bool
	}{
		{"any, by default", nil, []*object.Task{dead(0, complete)}, true},
		{"none", &swarm.RestartPolicy{Condition: "none"}, []*object.Task{dead(0, failed)}, false},
		{"on failure, failed", &swarm.RestartPolicy{Condition: "on-failure"}, []*object.Task{dead(0, failed)}, true},
		{"on failure, rejected", &swarm.RestartPolicy{Condition: "on-failure"}, []*object.Task{dead(0, swarm.TaskStateRejected)}, true},
		{"on failure, complete", &swarm.RestartPolicy{Condition: "on-failure"}, []*object.Task{dead(0, complete)}, false},
		{"first of one attempt", limit(1, 0), []*object.Task{dead(0, failed)}, true},
		{"last of one attempt", limit(1, 0), []*object.Task{dead(0, failed), dead(9, failed)}, false},
		{"stopped, not died", limit(1, 0), []*object.Task{dead(0, failed), dead(9, shutdown)}, true},
		{"before the window", limit(1, 10*time.Second), []*object.Task{dead(0, failed), dead(9, failed), dead(30, failed)}, false},
		{"only old attempts", limit(2, 10*time.Second), []*object.Task{dead(0, failed), dead(9, failed), dead(30, failed)}, true},
		{"all in the window", limit(2, time.Minute), []*object.Task{dead(0, failed), dead(9, failed), dead(30, failed)}, false},
	}
	for _, tt := range tests {
		if got := restart.Allowed(tt.policy, tt.tried[len(tt.tried)-1], tt.tried); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestRelease(t *testing.T) {
	on := func(node string, state swarm.TaskState) *object.Task {
		t := &object.Task{NodeID: node}
		t.Status.State = state
		return t
	}
	tests := []struct {
		name   string
		held   int // seconds that the task is held back
		before []*object.Task
		now    int
		want   bool
		next   int // seconds; 0 is never
	}{
		{name: "nothing before", want: true},
		{name: "in its delay", held: 5, now: 4, next: 5},
		{name: "after its delay", held: 5, now: 5, want: true},
		{name: "the one before runs", held: 5, before: []*object.Task{on("n1", swarm.TaskStateRunning)}, now: 9, next: 65},
		{name: "it ended", held: 5, before: []*object.Task{on("n1", swarm.TaskStateShutdown)}, now: 9, want: true},
		{name: "it never started", before: []*object.Task{on("", swarm.TaskStatePending)}, want: true},
		{name: "its node is lost", before: []*object.Task{on("lost", swarm.TaskStateRunning)}, want: true},
		{name: "a minute is enough", before: []*object.Task{on("n1", swarm.TaskStateRunning)}, now: 60, want: true},
	}
	for _, tt := range tests {
		task := &object.Task{}
		task.CreatedAt = start
		if tt.held > 0 {
			task.NotBefore = at(tt.held).UnixNano()
		}
		ok, next := restart.Release(task, tt.before, func(node string) bool { return node == "lost" }, at(tt.now))
		want := time.Time{}
		if tt.next > 0 {
			want = at(tt.next)
		}
		if ok != tt.want || !next.Equal(want) {
			t.Errorf("%s: got %v, %v, want %v, %v", tt.name, ok, next, tt.want, want)
		}
	}
}
