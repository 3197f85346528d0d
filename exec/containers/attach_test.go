package containers_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/exec/containers"
	"skep/store/object"
)

// screen is a client's end, safe to look at while it is written to.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func (s *screen) shows(t *testing.T, text string) {
	t.Helper()
	eventually(t, "client sees "+text, func() bool { return strings.Contains(s.String(), text) })
}

func enter(t *testing.T, to io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Error(err)
	}
}

// attach attaches in the background and returns when the client has its place;
// the channel has the result.
func attach(e *containers.Engine, id string, s object.Streams) <-chan error {
	done, there := make(chan error, 1), make(chan struct{})
	s.Attached = func() { close(there) }
	go func() { done <- e.Attach(context.Background(), id, s) }()
	<-there
	return done
}

func result(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("it did not end")
		return nil
	}
}

func TestAttach_BeforeStartMissesNothing(t *testing.T) {
	e := newWorld(t).engine(t)
	for range 5 {
		id := create(t, e, request("out", "first", "err", "second", "count", "500"))
		var out, errs screen
		done := attach(e, id, object.Streams{Stdout: &out, Stderr: &errs})
		start(t, e, id)
		if err := result(t, done); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(out.String(), "first\nline 0 ") || strings.Count(out.String(), "\n") != 501 || strings.Count(errs.String(), "\n") != 501 {
			t.Errorf("client saw %d and %d lines, want 501", strings.Count(out.String(), "\n"), strings.Count(errs.String(), "\n"))
		}
	}
}

func TestAttach_Stdin(t *testing.T) {
	e := newWorld(t).engine(t)
	r := request("cat", "out", "end")
	r.OpenStdin, r.StdinOnce = true, true
	id := create(t, e, r)
	var out screen
	big := strings.Repeat("0123456789abcde\n", 20_000)
	done := attach(e, id, object.Streams{Stdin: strings.NewReader(big), Stdout: &out})
	start(t, e, id)
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if out.String() != big+"end\n" {
		t.Errorf("got %d bytes back, want %d", len(out.String()), len(big)+4)
	}
}

func TestAttach_Terminal(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("size", "echo")
	r.OpenStdin, r.Tty = true, true
	r.HostConfig.ConsoleSize = [2]uint{43, 132}
	id := create(t, e, r)
	var out screen
	in, typed := io.Pipe()
	done := attach(e, id, object.Streams{Stdin: in, Stdout: &out, DetachKeys: []byte{16, 17}})
	start(t, e, id)
	out.shows(t, "size 43 132 true\r\n")
	enter(t, typed, "hello\r")
	out.shows(t, "got hello\r\n")
	enter(t, typed, "\x10\x11")
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	// The container goes on, and another client comes.
	var out2 screen
	in2, typed2 := io.Pipe()
	done = attach(e, id, object.Streams{Stdin: in2, Stdout: &out2})
	if err := e.Resize(t.Context(), id, 10, 20); err != nil {
		t.Error(err)
	}
	enter(t, typed2, "again\r\x04")
	out2.shows(t, "got again\r\n")
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if code := wait(t, e, id); code != 0 {
		t.Errorf("exit code %d", code)
	}
	eventually(t, "events", func() bool {
		return strings.Contains(strings.Join(w.actions(id), " "), "attach start detach attach die")
	})
	if log, _ := output(t, e, id, object.LogQuery{Stdout: true, Tail: -1}); !strings.Contains(log, "got hello\r\n") {
		t.Errorf("log has %q", log)
	}
}

// A reader that does not read slows the container down and loses nothing.
func TestAttach_SlowReader(t *testing.T) {
	e := newWorld(t).engine(t)
	id := create(t, e, request("count", "5000"))
	out, into := io.Pipe()
	done := attach(e, id, object.Streams{Stdout: into})
	start(t, e, id)
	time.Sleep(300 * time.Millisecond)
	read := make(chan int, 1)
	go func() {
		b, err := io.ReadAll(out)
		if err != nil {
			t.Error(err)
		}
		read <- bytes.Count(b, []byte("\n"))
	}()
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	into.Close()
	if n := <-read; n != 5000 {
		t.Errorf("slow reader saw %d lines, want 5000", n)
	}
	if log, _ := output(t, e, id, object.LogQuery{Stdout: true, Tail: -1}); strings.Count(log, "\n") != 5000 {
		t.Errorf("log has %d lines, want 5000", strings.Count(log, "\n"))
	}
}

func execute(t *testing.T, e *containers.Engine, id string, req container.ExecCreateRequest, s object.Streams) (code int, err error) {
	t.Helper()
	x, err := e.CreateExec(t.Context(), id, req)
	if err != nil {
		t.Fatal(err)
	}
	err = e.StartExec(t.Context(), x, false, 0, 0, s)
	i, ierr := e.InspectExec(t.Context(), x)
	if ierr != nil {
		t.Fatal(ierr)
	}
	if i.ExitCode == nil {
		t.Fatalf("no exit code: %+v", i)
	}
	return *i.ExitCode, err
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("deaf")
	r.User, r.WorkingDir, r.Env = "alice", "/data", []string{"BOX=yes"}
	id := create(t, e, r)
	if _, err := e.CreateExec(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"/guest"}}); !errdefs.IsConflict(err) {
		t.Errorf("exec in what does not run: %v", err)
	}
	start(t, e, id)
	big := strings.Repeat("0123456789abcde\n", 20_000)
	tests := []struct {
		name  string
		req   container.ExecCreateRequest
		stdin string
		code  int
		out   string
		err   string // of StartExec
	}{
		{"exit code", container.ExecCreateRequest{Cmd: []string{"/guest", "out", "hi", "exit", "9"}}, "", 9, "hi\n", ""},
		{"as the container", container.ExecCreateRequest{Cmd: []string{"/guest", "id", "cwd", "env"}}, "", 0, "1000 1001 [50 1001]\n/data\n", ""},
		{"environment", container.ExecCreateRequest{Cmd: []string{"/guest", "env"}, Env: []string{"X=1"}}, "", 0, "BOX=yes\nX=1\n", ""},
		{"another user", container.ExecCreateRequest{Cmd: []string{"/guest", "id"}, User: "0:wheel"}, "", 0, "0 10 ", ""},
		{"another directory", container.ExecCreateRequest{Cmd: []string{"/guest", "cwd"}, WorkingDir: "/tmp"}, "", 0, "/tmp\n", ""},
		{"stdin", container.ExecCreateRequest{Cmd: []string{"/guest", "cat"}, AttachStdin: true}, big, 0, big, ""},
		{"no stdin", container.ExecCreateRequest{Cmd: []string{"/guest", "cat", "out", "x"}}, "", 0, "x\n", ""},
		{"seccomp", container.ExecCreateRequest{Cmd: []string{"/guest", "unshare"}, User: "0"}, "", 0, "not permitted", ""},
		{"unknown program", container.ExecCreateRequest{Cmd: []string{"nope"}}, "", 127, "", `OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file not found in $PATH`},
		{"no program", container.ExecCreateRequest{Cmd: []string{"/etc/passwd"}}, "", 126, "", "permission denied"},
		{"unknown user", container.ExecCreateRequest{Cmd: []string{"/guest"}, User: "bob"}, "", 126, "", "unable to find user bob: no matching entries in passwd file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out screen
			tt.req.AttachStdout, tt.req.AttachStderr = true, true
			code, err := execute(t, e, id, tt.req, object.Streams{Stdin: strings.NewReader(tt.stdin), Stdout: &out, Stderr: &out})
			if code != tt.code || !strings.Contains(out.String(), tt.out) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %d, %.200q, %v; want %d, %.200q, %q", code, out.String(), err, tt.code, tt.out, tt.err)
			}
		})
	}
	if _, err := e.InspectExec(t.Context(), "nope"); err == nil || err.Error() != "No such exec instance: nope" {
		t.Errorf("unknown exec: %v", err)
	}
}

func TestExec_Terminal(t *testing.T) {
	e := newWorld(t).engine(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	req := container.ExecCreateRequest{
		Cmd: []string{"/guest", "size", "echo", "ms", "100", "size", "exit", "5"}, Tty: true,
		AttachStdin: true, AttachStdout: true,
	}
	x, err := e.CreateExec(t.Context(), id, req)
	if err != nil {
		t.Fatal(err)
	}
	var out screen
	in, typed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- e.StartExec(context.Background(), x, false, 24, 80, object.Streams{Stdin: in, Stdout: &out})
	}()
	out.shows(t, "size 24 80 true\r\n")
	if err := e.ResizeExec(t.Context(), x, 50, 100); err != nil {
		t.Error(err)
	}
	enter(t, typed, "hello\r")
	out.shows(t, "got hello\r\n")
	enter(t, typed, "\x04")
	out.shows(t, "size 50 100 true\r\n")
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if i, err := e.InspectExec(t.Context(), x); err != nil || i.ExitCode == nil || *i.ExitCode != 5 || i.Running {
		t.Errorf("exec ended with %+v, %v", i, err)
	}
}

func TestExec_Detached(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	x, err := e.CreateExec(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"/guest", "ms", "100", "exit", "6"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.StartExec(t.Context(), x, true, 0, 0, object.Streams{}); err != nil {
		t.Fatal(err)
	}
	if i, err := e.InspectExec(t.Context(), x); err != nil || !i.Running || i.Pid == 0 {
		t.Errorf("detached exec: %+v, %v", i, err)
	}
	if err := e.StartExec(t.Context(), x, true, 0, 0, object.Streams{}); !errdefs.IsConflict(err) {
		t.Errorf("second start: %v", err)
	}
	eventually(t, "end of exec", func() bool {
		i, err := e.InspectExec(t.Context(), x)
		return err == nil && i.ExitCode != nil && *i.ExitCode == 6
	})
	if top, err := e.Top(t.Context(), id, ""); err != nil || len(top.Processes) != 1 || top.Titles[7] != "CMD" || top.Processes[0][7] != "/guest deaf" {
		t.Errorf("top: %+v, %v", top, err)
	}
	if st, err := e.Stats(t.Context(), id); err != nil || st.CPUStats.CPUUsage.TotalUsage == 0 || st.MemoryStats.Usage == 0 || st.PidsStats.Current == 0 || st.CPUStats.SystemUsage == 0 {
		t.Errorf("stats: %+v, %v", st, err)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("ms", "300", "write", "/tmp/ok", "x", "deaf")
	r.Healthcheck = &container.HealthConfig{
		Test: []string{"CMD", "/guest", "exists", "/tmp/ok"}, Interval: 50 * time.Millisecond, Retries: 2,
	}
	id := create(t, e, r)
	start(t, e, id)
	health := func() (s container.HealthStatus, h *container.Health) {
		i, err := e.Inspect(t.Context(), id, false)
		if err != nil || i.State.Health == nil {
			return "", nil
		}
		return i.State.Health.Status, i.State.Health
	}
	eventually(t, "unhealthy", func() bool { s, _ := health(); return s == container.Unhealthy })
	eventually(t, "healthy", func() bool { s, _ := health(); return s == container.Healthy })
	_, h := health()
	last := h.Log[len(h.Log)-1]
	if h.FailingStreak != 0 || last.ExitCode != 0 || last.Output != "yes\n" || len(h.Log) > 5 {
		t.Errorf("health %+v, %+v", h, last)
	}
	if got := strings.Join(w.actions(id), " "); !strings.Contains(got, "health_status: unhealthy health_status: healthy") {
		t.Errorf("events %v", got)
	}
	if l, err := e.List(t.Context(), true, false); err != nil || !strings.HasSuffix(l[0].Status, "(healthy)") {
		t.Errorf("list says %q, %v", l[0].Status, err)
	}
}

func TestHealth_Timeout(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("deaf")
	r.Healthcheck = &container.HealthConfig{
		Test: []string{"CMD", "/guest", "deaf"}, Interval: 20 * time.Millisecond, Timeout: 200 * time.Millisecond, Retries: 1,
	}
	id := create(t, e, r)
	start(t, e, id)
	eventually(t, "unhealthy", func() bool {
		i, err := e.Inspect(t.Context(), id, false)
		return err == nil && i.State.Health != nil && i.State.Health.Status == container.Unhealthy
	})
	i, err := e.Inspect(t.Context(), id, false)
	if err != nil || i.State.Health.Log[0].ExitCode != -1 || !strings.Contains(i.State.Health.Log[0].Output, "exceeded timeout") {
		t.Errorf("health %+v, %v", i.State.Health.Log[0], err)
	}
	eventually(t, "end of the late check", func() bool {
		top, err := e.Top(t.Context(), id, "")
		return err == nil && len(top.Processes) <= 2
	})
}
