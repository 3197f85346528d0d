package containers_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/store/object"
)

func TestLife(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	id := create(t, e, request("term", "7"))
	state := func() *container.State {
		t.Helper()
		i, err := e.Inspect(t.Context(), id, false)
		if err != nil {
			t.Fatal(err)
		}
		return i.State
	}
	if s := state(); s.Status != "created" || s.StartedAt != "0001-01-01T00:00:00Z" {
		t.Errorf("created: %+v", s)
	}
	start(t, e, id)
	if s := state(); s.Status != "running" || !s.Running || s.Pid < 2 {
		t.Errorf("started: %+v", s)
	}
	if err := e.Start(t.Context(), id); !errdefs.IsNotModified(err) {
		t.Errorf("second start: %v", err)
	}
	if err := e.Remove(t.Context(), id, false, false); !errdefs.IsConflict(err) {
		t.Errorf("removing what runs: %v", err)
	}
	if err := e.Pause(t.Context(), id); err != nil || state().Status != "paused" {
		t.Errorf("pause: %v, %+v", err, state())
	}
	if err := e.Unpause(t.Context(), id); err != nil || state().Status != "running" {
		t.Errorf("unpause: %v, %+v", err, state())
	}
	eventually(t, "handler of SIGTERM", func() bool {
		out, _ := output(t, e, id, object.LogQuery{Stdout: true, Tail: -1})
		return out == "waiting\n"
	})
	if err := e.Stop(t.Context(), id, "", nil); err != nil {
		t.Error(err)
	}
	if s := state(); s.Status != "exited" || s.ExitCode != 7 || s.Running || s.Pid != 0 {
		t.Errorf("stopped: %+v", s)
	}
	if err := e.Stop(t.Context(), id, "", nil); !errdefs.IsNotModified(err) {
		t.Errorf("second stop: %v", err)
	}
	if err := e.Kill(t.Context(), id, ""); !errdefs.IsConflict(err) {
		t.Errorf("killing what does not run: %v", err)
	}
	if err := e.Restart(t.Context(), id, "", nil); err != nil || !state().Running {
		t.Errorf("restart: %v, %+v", err, state())
	}
	if err := e.Rename(t.Context(), id, "other"); err != nil {
		t.Error(err)
	}
	if err := e.Kill(t.Context(), "other", "KILL"); err != nil || state().ExitCode != 137 {
		t.Errorf("kill: %v, %+v", err, state())
	}
	if err := e.Remove(t.Context(), id[:8], false, false); err != nil {
		t.Error(err)
	}
	if _, err := e.Inspect(t.Context(), id, false); err == nil || err.Error() != "No such container: "+id {
		t.Errorf("inspect of what is gone: %v", err)
	}
	want := []string{"create", "start", "pause", "unpause", "kill", "die", "stop", "start", "restart", "rename", "kill", "die", "destroy"}
	if got := w.actions(id); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	for _, dir := range []string{"containers", "run/containers", "run/libcontainer", "netns"} {
		if left, err := os.ReadDir(filepath.Join(w.dir, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func TestStop_KillsTheDeaf(t *testing.T) {
	e := newWorld(t).engine(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	eventually(t, "output", func() bool {
		out, _ := output(t, e, id, object.LogQuery{Stdout: true, Tail: -1})
		return out == "deaf\n"
	})
	grace := 100 * time.Millisecond
	begin := time.Now()
	if err := e.Stop(t.Context(), id, "", &grace); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < grace || took > 5*time.Second {
		t.Errorf("stop took %v", took)
	}
	if code := wait(t, e, id); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
}

func TestRestartPolicy(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("exit", "4")
	r.HostConfig.RestartPolicy = container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}
	id := create(t, e, r)
	start(t, e, id)
	if code := wait(t, e, id); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
	i, err := e.Inspect(t.Context(), id, false)
	if err != nil || i.RestartCount != 2 || i.State.Status != "exited" {
		t.Errorf("restarted %d times, %+v, %v; want 2", i.RestartCount, i.State, err)
	}
	r = request("ms", "20")
	r.HostConfig.RestartPolicy = container.RestartPolicy{Name: "always"}
	id = create(t, e, r)
	start(t, e, id)
	eventually(t, "restarts", func() bool {
		i, err := e.Inspect(t.Context(), id, false)
		return err == nil && i.RestartCount >= 2
	})
	if err := e.Stop(t.Context(), id, "", nil); err != nil {
		t.Error(err)
	}
	if i, err := e.Inspect(t.Context(), id, false); err != nil || i.State.Running {
		t.Errorf("runs after a stop: %+v, %v", i.State, err)
	}
}

func TestAutoRemove(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("exit", "3")
	r.HostConfig.AutoRemove = true
	id := create(t, e, r)
	gone, err := e.Wait(t.Context(), id, container.WaitConditionRemoved)
	if err != nil {
		t.Fatal(err)
	}
	next, err := e.Wait(t.Context(), id, container.WaitConditionNextExit)
	if err != nil {
		t.Fatal(err)
	}
	start(t, e, id)
	if r, err := next(t.Context()); err != nil || r.StatusCode != 3 {
		t.Errorf("next exit: %+v, %v", r, err)
	}
	if r, err := gone(t.Context()); err != nil || r.StatusCode != 3 {
		t.Errorf("removed: %+v, %v", r, err)
	}
	if list, err := e.List(t.Context(), true, false); err != nil || len(list) != 0 {
		t.Errorf("left %v, %v", list, err)
	}
}

func TestCreate_Refuses(t *testing.T) {
	e := newWorld(t).engine(t)
	if _, err := e.Create(t.Context(), "taken", request("exit", "0")); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, box string
		change    func(*container.CreateRequest)
		kind      func(error) bool
		text      string
	}{
		{"name in use", "taken", nil, errdefs.IsConflict, `Conflict. The container name "/taken" is already in use by container`},
		{"bad name", "a b", nil, errdefs.IsInvalidArgument, "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{"no command", "", func(r *container.CreateRequest) { r.Entrypoint = []string{""}; r.Cmd = nil }, errdefs.IsInvalidArgument, "no command specified"},
		{"little memory", "", func(r *container.CreateRequest) { r.HostConfig.Memory = 1 << 20 }, errdefs.IsInvalidArgument, "Minimum memory limit allowed is 6MB"},
		{"unknown capability", "", func(r *container.CreateRequest) { r.HostConfig.CapAdd = []string{"FLY"} }, errdefs.IsInvalidArgument, `invalid CapAdd: unknown capability: "CAP_FLY"`},
		{"unknown network", "", func(r *container.CreateRequest) { r.HostConfig.NetworkMode = "blue" }, errdefs.IsNotFound, "network blue not found"},
		{"unknown log driver", "", func(r *container.CreateRequest) { r.HostConfig.LogConfig.Type = "x" }, errdefs.IsInvalidArgument, "logger: no log driver named 'x' is registered"},
		{"bind of nothing", "", func(r *container.CreateRequest) { r.HostConfig.Mounts = mounts("bind", "/nope/nope", "/x") }, errdefs.IsInvalidArgument, `invalid mount config for type "bind": bind source path does not exist: /nope/nope`},
		{"root as target", "", func(r *container.CreateRequest) { r.HostConfig.Binds = []string{"/tmp:/"} }, errdefs.IsInvalidArgument, "destination can't be '/'"},
		{"remove and restart", "", func(r *container.CreateRequest) {
			r.HostConfig.AutoRemove = true
			r.HostConfig.RestartPolicy.Name = "always"
		}, errdefs.IsInvalidArgument, "can't create 'AutoRemove' container with restart policy"},
		{"privileged", "", func(r *container.CreateRequest) { r.HostConfig.Privileged = true }, errdefs.IsNotImplemented, "privileged containers are not supported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request("exit", "0")
			if tt.change != nil {
				tt.change(&r)
			}
			_, err := e.Create(t.Context(), tt.box, r)
			if err == nil || !tt.kind(err) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
		})
	}
	if list, err := e.List(t.Context(), true, false); err != nil || len(list) != 1 || list[0].Names[0] != "/taken" {
		t.Errorf("refused containers were left: %v, %v", list, err)
	}
}

// The node readies the kernel for starts by moving to where it is.
func TestStart_LeavesTheNodeWhereItIs(t *testing.T) {
	e := newWorld(t).engine(t)
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if code, _, _ := run(t, e, request("exit", "0")); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("the node went from %s to %s, %v", before, after, err)
	}
}
