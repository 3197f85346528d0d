package agent_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/store/object"
)

// script is a controller that answers as it is told, and notes what was called.
type script struct {
	err    error
	called string
}

func (s *script) do(verb string) error           { s.called += verb; return s.err }
func (s *script) Prepare(context.Context) error  { return s.do("prepare") }
func (s *script) Start(context.Context) error    { return s.do("start") }
func (s *script) Wait(context.Context) error     { return s.do("wait") }
func (s *script) Shutdown(context.Context) error { return s.do("shutdown") }
func (s *script) Remove(context.Context) error   { return s.do("remove") }
func (s *script) Status(context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	return &swarm.ContainerStatus{ContainerID: "c"}, []swarm.PortConfig{{PublishedPort: 80}}, nil
}

func TestStep(t *testing.T) {
	const (
		assigned  = swarm.TaskStateAssigned
		accepted  = swarm.TaskStateAccepted
		preparing = swarm.TaskStatePreparing
		ready     = swarm.TaskStateReady
		starting  = swarm.TaskStateStarting
		running   = swarm.TaskStateRunning
		complete  = swarm.TaskStateComplete
		shutdown  = swarm.TaskStateShutdown
		failed    = swarm.TaskStateFailed
		rejected  = swarm.TaskStateRejected
		remove    = swarm.TaskStateRemove
	)
	bad := errors.New("no such image")
	unfit := object.Errorf(object.ErrUnfit, "no ESP")
	temporary := fmt.Errorf("registry: %w", object.ErrTemporary)
	tests := []struct {
		state, desired swarm.TaskState
		err            error
		want           swarm.TaskState
		message, text  string
		called         string
		step           error
	}{
		{state: assigned, desired: running, want: accepted, message: "accepted"},
		{state: accepted, desired: running, want: preparing, message: "preparing"},
		{state: preparing, desired: running, want: ready, message: "prepared", called: "prepare"},
		{state: preparing, desired: ready, want: ready, message: "prepared", called: "prepare"},
		{state: ready, desired: ready, want: ready, message: "was", step: agent.ErrIdle},
		{state: ready, desired: running, want: starting, message: "starting"},
		{state: starting, desired: running, want: running, message: "started", called: "start"},
		{state: running, desired: running, want: complete, message: "finished", called: "wait"},

		{state: preparing, desired: running, err: bad, want: rejected, message: "was", text: "no such image", called: "prepare"},
		{state: starting, desired: running, err: bad, want: failed, message: "was", text: "no such image", called: "start"},
		{state: starting, desired: running, err: unfit, want: rejected, message: "was", text: "no ESP", called: "start"},
		{
			state: running, desired: running, err: &object.ExitError{Code: 137}, want: failed,
			message: "was", text: "task: non-zero exit (137)", called: "wait",
		},
		{
			state: running, desired: running, err: &object.ExitError{Code: 1, Cause: errors.New("dockerexec: unhealthy container")}, want: failed,
			message: "was", text: "task: non-zero exit (1): dockerexec: unhealthy container", called: "wait",
		},

		{state: preparing, desired: running, err: temporary, want: preparing, message: "was", text: "registry: temporary error", called: "prepare", step: agent.ErrAgain},
		{state: starting, desired: running, err: context.Canceled, want: starting, message: "was", called: "start", step: agent.ErrAgain},

		{state: assigned, desired: shutdown, want: shutdown, message: "shutdown", called: "shutdown"},
		{state: ready, desired: remove, want: shutdown, message: "shutdown", called: "shutdown"},
		{state: running, desired: shutdown, want: shutdown, message: "shutdown", called: "shutdown"},
		{state: running, desired: shutdown, err: bad, want: running, message: "was", text: "no such image", called: "shutdown", step: agent.ErrAgain},

		{state: complete, desired: running, want: complete, message: "was", step: agent.ErrIdle},
		{state: shutdown, desired: shutdown, want: shutdown, message: "was", step: agent.ErrIdle},
		{state: failed, desired: shutdown, want: failed, message: "was", step: agent.ErrIdle},
		{state: rejected, desired: remove, want: rejected, message: "was", step: agent.ErrIdle},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s to %s, %v", tt.state, tt.desired, tt.err), func(t *testing.T) {
			c := &script{err: tt.err}
			task := &object.Task{ID: "t", DesiredState: tt.desired}
			task.Status = swarm.TaskStatus{State: tt.state, Message: "was"}
			got, err := agent.Step(t.Context(), task, c)
			if !errors.Is(err, tt.step) || (err != nil) != (tt.step != nil) {
				t.Errorf("step: got error %v, want %v", err, tt.step)
			}
			if got.State != tt.want || got.Message != tt.message || got.Err != tt.text || c.called != tt.called {
				t.Errorf("step: got %s %q %q by %q, want %s %q %q by %q",
					got.State, got.Message, got.Err, c.called, tt.want, tt.message, tt.text, tt.called)
			}
			if object.Rank(got.State) < object.Rank(tt.state) {
				t.Errorf("step: went back from %s to %s", tt.state, got.State)
			}
		})
	}
}

func TestStep_TellsOfTheContainer(t *testing.T) {
	task := &object.Task{DesiredState: swarm.TaskStateRunning}
	task.Status.State = swarm.TaskStateRunning
	got, err := agent.Step(t.Context(), task, &script{err: &object.ExitError{Code: 3}})
	if err != nil {
		t.Fatal(err)
	}
	want := swarm.TaskStatus{
		Timestamp: got.Timestamp, State: swarm.TaskStateFailed, Err: "task: non-zero exit (3)",
		ContainerStatus: &swarm.ContainerStatus{ContainerID: "c", ExitCode: 3},
		PortStatus:      swarm.PortStatus{Ports: []swarm.PortConfig{{PublishedPort: 80}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}
