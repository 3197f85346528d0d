package containers_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/appliance/nodetest"
	"skep/exec/containers"
	"skep/exec/runspec"
	"skep/store/object"
)

// firstByte tells when something is written to it.
type firstByte struct{ at chan time.Time }

func (f *firstByte) Write(p []byte) (int, error) {
	select {
	case f.at <- time.Now():
	default:
	}
	return len(p), nil
}

// benchWorld is a world whose shims run from what SKEP_BINARY, the real
// binary, installs when it boots.
func benchWorld(b *testing.B) (*world, *containers.Engine) {
	b.Helper()
	w := newWorld(b)
	if exe := os.Getenv("SKEP_BINARY"); exe != "" {
		n := nodetest.New(b, exe, "bench", nodetest.File)
		n.Start(b)
		found, err := filepath.Glob(n.Path("data", "bin", "*", "skep"))
		if err != nil || len(found) != 1 {
			b.Fatalf("the node installed %v, %v", found, err)
		}
		data, err := os.ReadFile(found[0])
		n.Stop(b)
		at := filepath.Join(w.dir, "bin", "skep")
		if err = errors.Join(err, os.Remove(at), os.WriteFile(at, data, 0o755)); err != nil {
			b.Fatal(err)
		}
	}
	e, err := containers.Open(b.Context(), w.config(slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return w, e
}

// BenchmarkStart is the time from the creation of a container to the first
// byte that it writes, beside that of Debian's runc with the same rootfs and
// namespaces: once with the same specification, once with the whole of
// Docker's seccomp profile. Ours includes mounting the root file system and
// making the network namespace.
func BenchmarkStart(b *testing.B) {
	w, e := benchWorld(b)
	variants := map[string]func(i int) time.Duration{
		"skep": func(int) time.Duration { return ours(b, e) },
	}
	if _, err := exec.LookPath("runc"); err == nil {
		same, docker := bundle(b, w, "same", false, "out", "x"), bundle(b, w, "docker", true, "out", "x")
		variants["runc"] = func(i int) time.Duration { return theirs(b, w, same, i) }
		variants["runc-docker-profile"] = func(i int) time.Duration { return theirs(b, w, docker, i) }
	}
	compare(b, variants)
}

// BenchmarkExec is the time from the creation of an exec to its first byte,
// beside `runc exec`.
func BenchmarkExec(b *testing.B) {
	w, e := benchWorld(b)
	id := create(b, e, request("deaf"))
	start(b, e, id)
	b.Cleanup(func() {
		if err := e.Remove(context.Background(), id, true, true); err != nil {
			b.Error(err)
		}
	})
	variants := map[string]func(int) time.Duration{"skep": func(int) time.Duration {
		first := &firstByte{at: make(chan time.Time, 1)}
		begin := time.Now()
		x, err := e.CreateExec(b.Context(), id, container.ExecCreateRequest{AttachStdout: true, Cmd: []string{"/guest", "out", "x"}})
		if err == nil {
			err = e.StartExec(b.Context(), x, false, 0, 0, object.Streams{Stdout: first})
		}
		if err != nil {
			b.Fatal(err)
		}
		return (<-first.at).Sub(begin)
	}}
	if _, err := exec.LookPath("runc"); err == nil {
		runc := []string{"--root", filepath.Join(w.dir, "runc")}
		dir := bundle(b, w, "exec", true, "deaf")
		name := filepath.Base(w.dir) + "exec"
		do := func(ctx context.Context, args ...string) *exec.Cmd {
			return exec.CommandContext(ctx, "runc", append(runc, args...)...)
		}
		if err := do(b.Context(), "run", "--detach", "--bundle", dir, name).Run(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := do(context.Background(), "delete", "--force", name).Run(); err != nil {
				b.Error(err)
			}
		})
		variants["runc"] = func(int) time.Duration {
			return byteOf(b, do(b.Context(), "exec", name, "/guest", "out", "x"))
		}
	}
	compare(b, variants)
}

// BenchmarkParallel is the time in which fifty containers start that are asked
// for at once, from the first request to the last one's first byte.
func BenchmarkParallel(b *testing.B) {
	_, e := benchWorld(b)
	for b.Loop() {
		ids := make(chan string, 50)
		var all sync.WaitGroup
		for range cap(ids) {
			all.Go(func() { _, id := first(b, e); ids <- id })
		}
		all.Wait()
		b.StopTimer()
		for range cap(ids) {
			end(b, e, <-ids)
		}
		b.StartTimer()
	}
}

// compare runs the variants in turn.
func compare(b *testing.B, variants map[string]func(i int) time.Duration) {
	b.Helper()
	took := map[string][]time.Duration{}
	i := 0
	for b.Loop() {
		for name, f := range variants {
			d := f(i)
			if i > 1 { // warm by now
				took[name] = append(took[name], d)
			}
		}
		i++
	}
	for name, list := range took {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[0].Microseconds())/1000, name+"-min-ms")
	}
}

func ours(b *testing.B, e *containers.Engine) time.Duration {
	b.Helper()
	took, id := first(b, e)
	end(b, e, id)
	return took
}

// first starts a container and waits for its first byte.
func first(b *testing.B, e *containers.Engine) (time.Duration, string) {
	b.Helper()
	first := &firstByte{at: make(chan time.Time, 1)}
	begin := time.Now()
	id := create(b, e, request("out", "x"))
	attached := attach(e, id, object.Streams{Stdout: first})
	start(b, e, id)
	if err := <-attached; err != nil {
		b.Fatal(err)
	}
	return (<-first.at).Sub(begin), id
}

func end(b *testing.B, e *containers.Engine, id string) {
	b.Helper()
	wait(b, e, id)
	if err := e.Remove(context.Background(), id, true, true); err != nil {
		b.Fatal(err)
	}
}

func theirs(b *testing.B, w *world, dir string, i int) time.Duration {
	b.Helper()
	id := filepath.Base(w.dir) + filepath.Base(dir) + strconv.Itoa(i)
	return byteOf(b, exec.CommandContext(b.Context(), "runc", "--root", filepath.Join(w.dir, "runc"), "run", "--bundle", dir, id))
}

// byteOf runs a command and measures the time to its first byte.
func byteOf(b *testing.B, cmd *exec.Cmd) time.Duration {
	b.Helper()
	first := &firstByte{at: make(chan time.Time, 1)}
	cmd.Stdout = first
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return (<-first.at).Sub(begin)
}

// bundle is the same container for runc.
func bundle(b *testing.B, w *world, name string, docker bool, script ...string) string {
	b.Helper()
	dir := filepath.Join(w.dir, name)
	in := &runspec.Input{
		ID: "bench", Config: container.Config{Cmd: append([]string{"/guest"}, script...)},
		Place:   runspec.Place{Rootfs: w.root, Cgroup: w.cgroup() + "/" + name, Netns: "-"},
		Machine: runspec.Machine{SwapLimit: true},
	}
	s, _, err := runspec.Generate(in)
	if err != nil {
		b.Fatal(err)
	}
	s.Version = "1.0.2"
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = ""
		}
	}
	if docker {
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			b.Fatal(err)
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}
