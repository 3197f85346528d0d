package containers_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"skep/exec/containers"
	"skep/store/object"
)

// node is a process of its own that runs an engine, to be killed. It reads
// containers to run, and says their IDs.
func node(dir string) error {
	w, err := openWorld(dir)
	if err != nil {
		return err
	}
	e, err := containers.Open(context.Background(), w.config(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		return err
	}
	go func() { _ = e.Run(context.Background()) }() // until the kill
	fmt.Fprintln(os.Stdout, "ready")
	for in := json.NewDecoder(os.Stdin); ; {
		var r container.CreateRequest
		if err := in.Decode(&r); err != nil {
			select {} // no more work
		}
		c, err := e.Create(context.Background(), "", r)
		if err == nil {
			err = e.Start(context.Background(), c.ID)
		}
		if err != nil {
			fmt.Fprintln(os.Stdout, err)
			continue
		}
		fmt.Fprintln(os.Stdout, c.ID)
		switch r.Labels["then"] {
		case "stop":
			err = e.Stop(context.Background(), c.ID, "", nil)
		case "exec":
			var x string
			if x, err = e.CreateExec(context.Background(), c.ID, container.ExecCreateRequest{Cmd: []string{"/guest", "ms", "50"}}); err == nil {
				err = e.StartExec(context.Background(), x, false, 0, 0, object.Streams{Stdout: io.Discard})
			}
		case "restart":
			err = e.Restart(context.Background(), c.ID, "KILL", nil)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startNode(t *testing.T, w *world) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), "SKEP_TEST_NODE="+w.dir)
	p.cmd.Stderr = t.Output()
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !p.out.Scan() || p.out.Text() != "ready" {
		t.Fatalf("node said %q", p.out.Text())
	}
	return p
}

func (p *process) run(t *testing.T, r container.CreateRequest) string {
	t.Helper()
	if err := json.NewEncoder(p.in).Encode(r); err != nil {
		t.Fatal(err)
	}
	if !p.out.Scan() || len(p.out.Text()) != 64 {
		t.Fatalf("node said %q", p.out.Text())
	}
	return p.out.Text()
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // it was killed
}

func TestNode_IsKilledAndContainersGoOn(t *testing.T) {
	w := newWorld(t)
	n := startNode(t, w)
	tty := request("echo")
	tty.Tty, tty.OpenStdin = true, true
	ids := map[string]string{
		"ticks": n.run(t, request("tick", "100", "20", "exit", "3")),
		"ends":  n.run(t, request("ms", "400", "out", "bye", "exit", "9")),
		"term":  n.run(t, request("term", "7")),
		"tty":   n.run(t, tty),
		"dies":  n.run(t, request("deaf")),
	}
	n.kill(t)
	time.Sleep(600 * time.Millisecond) // "ends" ends while nobody looks
	pid, err := os.ReadFile(filepath.Join(w.dir, "run", "containers", ids["dies"], "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(string(pid)); err != nil {
		t.Fatal(err)
	} else if p, err := os.FindProcess(n); err != nil || p.Kill() != nil {
		t.Fatal("killed nothing")
	}
	eventually(t, "exit noted", func() bool {
		_, err := os.Stat(filepath.Join(w.dir, "run", "containers", ids["dies"], "exit"))
		return err == nil
	})

	e := w.engine(t)
	for name, want := range map[string]int{"ends": 9, "dies": 137} {
		if code := wait(t, e, ids[name]); code != want {
			t.Errorf("%s: exit code %d, want %d", name, code, want)
		}
	}
	for _, name := range []string{"ticks", "term", "tty"} {
		if i, err := e.Inspect(t.Context(), ids[name], false); err != nil || !i.State.Running || i.State.Pid < 2 {
			t.Errorf("%s does not run: %+v, %v", name, i.State, err)
		}
	}
	// Everything works on what was adopted.
	var out screen
	code, err := execute(t, e, ids["term"], container.ExecCreateRequest{Cmd: []string{"/guest", "out", "hi", "exit", "4"}}, object.Streams{Stdout: &out})
	if code != 4 || out.String() != "hi\n" || err != nil {
		t.Errorf("exec after restart: %d, %q, %v", code, out.String(), err)
	}
	var term screen
	in, typed := io.Pipe()
	done := attach(e, ids["tty"], object.Streams{Stdin: in, Stdout: &term})
	enter(t, typed, "still there\r")
	term.shows(t, "got still there\r\n")
	enter(t, typed, "\x04")
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if err := e.Stop(t.Context(), ids["term"], "", nil); err != nil || wait(t, e, ids["term"]) != 7 {
		t.Errorf("stop after restart: %v", err)
	}
	if code := wait(t, e, ids["ticks"]); code != 3 {
		t.Errorf("ticks: exit code %d, want 3", code)
	}
	log, _ := output(t, e, ids["ticks"], object.LogQuery{Stdout: true, Tail: -1})
	var want strings.Builder
	for i := range 100 {
		fmt.Fprintln(&want, "tick", i)
	}
	if log != want.String() {
		t.Errorf("log has %d lines, want 100", strings.Count(log, "\n"))
	}
}

// Twelve nodes in a row, each killed at some moment of its work.
func TestNode_LeavesNothingBehind(t *testing.T) {
	w := newWorld(t)
	for i := range 12 {
		n := startNode(t, w)
		n.run(t, request("tick", "50", "10"))
		r := request("tick", "20", "10")
		r.HostConfig.AutoRemove = i%2 == 0
		r.Labels = map[string]string{"then": []string{"stop", "exec", "restart"}[i%3]}
		if err := json.NewEncoder(n.in).Encode(r); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 12 * time.Millisecond)
		n.kill(t)
	}
	e, stop := w.open(t)
	eventually(t, "all have ended", func() bool {
		l, err := e.List(t.Context(), false, false)
		return err == nil && len(l) == 0
	})
	l, err := e.List(t.Context(), true, false)
	if err != nil || len(l) < 10 {
		t.Errorf("knows of %d containers, %v; want at least 10", len(l), err)
	}
	for _, c := range l {
		i, err := e.Inspect(t.Context(), c.ID, false)
		if err != nil || i.State.ExitCode != 0 && i.State.ExitCode != 2 && i.State.ExitCode != 137 && i.State.ExitCode != 143 {
			t.Errorf("%s ended with %+v, %v", c.ID, i.State, err)
		}
		if err := e.Remove(t.Context(), c.ID, true, true); err != nil {
			t.Error(err)
		}
	}
	stop()
	for _, dir := range []string{"containers", "run/containers", "run/libcontainer", "netns"} {
		if left, err := os.ReadDir(filepath.Join(w.dir, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	eventually(t, "no process is left", func() bool { return len(running(t, filepath.Join(w.dir, "bin"))) == 0 })
}

// running lists the processes that run from a directory.
func running(t *testing.T, dir string) (list []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if exe, err := os.Readlink(p); err == nil && strings.HasPrefix(exe, dir) {
			list = append(list, p)
		}
	}
	return list
}

func TestShim_IsSmall(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	eventually(t, "only the shim is left", func() bool { return len(running(t, filepath.Join(w.dir, "bin"))) == 1 })
	dir := filepath.Dir(running(t, filepath.Join(w.dir, "bin"))[0])
	b, err := os.ReadFile(dir + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		// Pages of the program are not counted: on a tmpfs they are always dirty.
		if f := strings.Fields(line); f[0] == "Anonymous:" {
			kb, err := strconv.Atoi(f[1])
			if err != nil || kb > 400 {
				t.Errorf("shim holds %s kB of its own, %v", f[1], err)
			}
			t.Logf("shim: %s kB anonymous", f[1])
		}
	}
	if tasks, err := os.ReadDir(dir + "/task"); err != nil || len(tasks) != 1 {
		t.Errorf("shim has %d threads, %v", len(tasks), err)
	}
}

// A shim that is killed takes its container with it: nobody would hear of its end.
func TestShim_IsKilled(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	eventually(t, "only the shim is left", func() bool { return len(running(t, filepath.Join(w.dir, "bin"))) == 1 })
	pid, err := strconv.Atoi(strings.Split(running(t, filepath.Join(w.dir, "bin"))[0], "/")[2])
	if err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
		t.Fatal("killed nothing")
	}
	if code := wait(t, e, id); code != 255 {
		t.Errorf("exit code %d, want 255", code)
	}
	i, err := e.Inspect(t.Context(), id, false)
	if err != nil || !strings.Contains(i.State.Error, "shim is gone") {
		t.Errorf("state %+v, %v", i.State, err)
	}
}
