package shim_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/exec/logs"
	"skep/exec/shim"
	"skep/store/object"
)

// The test binary is the shim, and its creator starts what the job says: a
// shell, in no container. So the shim is tested alone.
func TestMain(m *testing.M) {
	if shim.Creating() {
		os.Exit(creator()) //nolint:forbidigo // this is the main of a creator
	}
	m.Run()
}

func creator() int {
	job, err := shim.ReadJob()
	c := shim.NewCreator(false)
	run, script, _ := strings.Cut(string(job), "\n")
	if script == "die" {
		fmt.Fprintln(os.Stderr, "last words")
		return 3
	}
	if script == "fail" {
		err = errors.New("no such container")
	}
	if err != nil {
		c.Failed(err)
		return 1
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/bin:/usr/bin"} // not the shim's
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	if err := cmd.Start(); err != nil {
		c.Failed(err)
		return 1
	}
	if err := c.Created(run, cmd.Process.Pid); err != nil {
		return 1
	}
	return 0
}

func plan(tb testing.TB, script string) shim.Plan {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	return shim.Plan{
		Exe: exe, Name: "test", RunDir: dir, LogDir: tb.TempDir(), MaxSize: 1 << 20, MaxFiles: 3,
		Job: []byte(dir + "\n" + script), Listen: true, Stdin: true, Wants: []shim.Want{0},
	}
}

func begin(t *testing.T, p shim.Plan) *shim.Process {
	t.Helper()
	proc, err := shim.Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

// finish reads a connection to its end and returns what came.
func finish(t *testing.T, c *shim.Conn) (stdout, stderr, exit string) {
	t.Helper()
	var out, errs bytes.Buffer
	for {
		kind, data, err := c.Read()
		if errors.Is(err, io.EOF) {
			return out.String(), errs.String(), exit
		}
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case shim.Stdout:
			out.Write(data)
		case shim.Stderr:
			errs.Write(data)
		case shim.Ended:
			exit = string(data)
		}
	}
}

func TestShim_KeepsOutputAndExit(t *testing.T) {
	p := plan(t, "echo out; echo err >&2; printf tail; exit 5")
	p.Wants = append(p.Wants, shim.WantStdout|shim.WantStderr)
	proc := begin(t, p)
	out, errs, exit := finish(t, proc.Conns[1])
	if out != "out\ntail" || errs != "err\n" || !strings.HasPrefix(exit, "5 1280 ") {
		t.Errorf("client got %q, %q, %q", out, errs, exit)
	}
	if out, errs, exit := finish(t, proc.Conns[0]); out != "" || errs != "" || exit == "" {
		t.Errorf("who wants nothing got %q, %q, %q", out, errs, exit)
	}
	proc.Reap()
	if e, err := shim.ReadExit(p.RunDir); err != nil || e.Code != 5 || time.Since(e.Time) > time.Minute {
		t.Errorf("exit %+v, %v", e, err)
	}
	if pid, err := shim.ReadPID(p.RunDir); err != nil || pid != proc.PID {
		t.Errorf("pid %d, %v; want %d", pid, err, proc.PID)
	}
	if _, err := shim.Dial(p.RunDir); err == nil {
		t.Error("dialled a shim that is gone")
	}
	b, err := os.ReadFile(filepath.Join(p.LogDir, "log"))
	if err != nil || strings.Count(string(b), "\n") != 3 || !strings.Contains(string(b), "Z stdout F out\n") || !strings.Contains(string(b), "Z stderr F err\n") || !strings.Contains(string(b), "Z stdout P tail\n") {
		t.Errorf("log %q, %v", b, err)
	}
}

func TestShim_TellsWhyThereIsNoContainer(t *testing.T) {
	for script, want := range map[string]string{
		"fail": "no such container",
		"die":  "start shim: creator said nothing (EOF): last words\n",
	} {
		p := plan(t, script)
		_, err := shim.Start(t.Context(), p)
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", script, err, want)
		}
		_, typed := errors.AsType[*shim.CreateError](err)
		if typed != (script == "fail") {
			t.Errorf("%s: %T", script, err)
		}
	}
}

func TestShim_EndsWithAGrandchildOnItsPipe(t *testing.T) {
	p := plan(t, "sleep 5 & echo $!; exit 0")
	proc := begin(t, p)
	begin := time.Now()
	if _, _, exit := finish(t, proc.Conns[0]); !strings.HasPrefix(exit, "0 0 ") {
		t.Errorf("exit %q", exit)
	}
	proc.Reap()
	if took := time.Since(begin); took < time.Second || took > 4*time.Second {
		t.Errorf("shim waited %v for the pipe, want two seconds", took)
	}
}

func TestShim_StdinGoesWithItsClient(t *testing.T) {
	p := plan(t, "cat; echo end")
	p.Wants = append(p.Wants, shim.WantStdout|shim.WantClose, shim.WantStdout)
	proc := begin(t, p)
	if _, err := proc.Conns[1].Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if kind, data, err := proc.Conns[1].Read(); err != nil || kind != shim.Stdout || string(data) != "hello\n" {
		t.Errorf("got %c %q, %v", kind, data, err)
	}
	proc.Conns[1].Close()
	if out, _, exit := finish(t, proc.Conns[2]); out != "hello\nend\n" || !strings.HasPrefix(exit, "0 ") {
		t.Errorf("other client got %q, %q", out, exit)
	}
	proc.Reap()
}

// A process that does not read its stdin keeps one client waiting, not the others.
func TestShim_StdinBacklogHoldsUpNobodyElse(t *testing.T) {
	p := plan(t, "sleep 1; echo done")
	p.Wants = append(p.Wants, 0)
	proc := begin(t, p)
	go func() {
		_, _ = proc.Conns[1].Write(bytes.Repeat([]byte("x"), 4<<20)) // ends with an error when the shim does
	}()
	time.Sleep(100 * time.Millisecond)
	late, err := shim.Dial(p.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Hello(shim.WantStdout); err != nil {
		t.Fatal(err)
	}
	if out, _, _ := finish(t, late); out != "done\n" {
		t.Errorf("late client got %q", out)
	}
	proc.Reap()
}

func TestShim_LogOfLongLinesIsWhole(t *testing.T) {
	p := plan(t, "head -c 100000 /dev/zero | tr '\\0' a; echo; head -c 16384 /dev/zero | tr '\\0' b; echo; echo; echo c")
	proc := begin(t, p)
	finish(t, proc.Conns[0])
	proc.Reap()
	var got bytes.Buffer
	for l, err := range logs.Read(t.Context(), p.LogDir, object.LogQuery{Stdout: true, Tail: -1}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got.Write(l.Text)
	}
	if want := strings.Repeat("a", 100000) + "\n" + strings.Repeat("b", 16384) + "\n\nc\n"; got.String() != want {
		t.Errorf("log has %d bytes, want %d", got.Len(), len(want))
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "v0-0000", "skep")
	if err := errors.Join(os.MkdirAll(filepath.Dir(old), 0o755), os.WriteFile(old, []byte("x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	// An old copy from which something runs stays.
	sleep, err := os.ReadFile("/bin/sleep")
	used := filepath.Join(dir, "v1-1111", "skep")
	if err = errors.Join(err, os.MkdirAll(filepath.Dir(used), 0o755), os.WriteFile(used, sleep, 0o755)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := exec.CommandContext(ctx, used, "60")
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exe, err := shim.Install(dir, "v2/x", shim.Self{})
	if err != nil || !strings.HasPrefix(exe, filepath.Join(dir, "v2-x-")) || filepath.Base(exe) != "skep" {
		t.Fatalf("installed %s, %v", exe, err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an unused copy was left")
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("a used copy was removed: %v", err)
	}
	stop()
	_ = cmd.Wait() // it was killed
	if err = os.WriteFile(exe, []byte("damaged"), 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := shim.Install(dir, "v2/x", shim.Self{})
	if err != nil || again != exe {
		t.Fatalf("installed %s, %v", again, err)
	}
	self, err1 := os.ReadFile("/proc/self/exe")
	copied, err2 := os.ReadFile(exe)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(self, copied) {
		t.Errorf("the copy is not this binary: %v", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left %v, %v", list, err)
	}
}

// program is one whose bytes and sum may differ.
type program struct{ text, sum string }

func (p program) Sum() ([]byte, error) {
	sum := sha256.Sum256([]byte(p.sum))
	return sum[:], nil
}

func (p program) Open() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(p.text)), nil
}

func TestInstall_PlacesWhatItIsGivenAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	exe, err := shim.Install(dir, "v1", program{"#!", "#!"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(exe); err != nil || string(b) != "#!" {
		t.Errorf("installed %q, %v", b, err)
	}
	if exe, err = shim.Install(dir, "v1", program{"damaged", "whole"}); err == nil {
		t.Errorf("installed another program as %s", exe)
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add("0 0 1.000000002\n")
	f.Add("create failed 256\n")
	f.Add("137 9 1795206870.5\n")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := shim.ParseExit(text)
		if err == nil && len(strings.Fields(text)) != 3 {
			t.Errorf("%q became %+v", text, e)
		}
	})
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		p := plan(b, "exit 0")
		proc, err := shim.Start(b.Context(), p)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, _, err = proc.Conns[0].Read()
		}
		proc.Reap()
	}
}
