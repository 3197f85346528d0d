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
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

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

// BenchmarkStart is the time from the creation of a container to the first
// byte that it writes, beside that of Debian's runc with the same rootfs and
// namespaces: once with the same specification, once with the whole of
// Docker's seccomp profile. Ours includes mounting the root file system and
// making the network namespace.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	if exe := os.Getenv("SKEP_BINARY"); exe != "" {
		at := filepath.Join(w.dir, "bin", "skep")
		data, err := os.ReadFile(exe)
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

	variants := map[string]func(i int) time.Duration{
		"skep": func(int) time.Duration { return ours(b, e) },
	}
	if _, err := exec.LookPath("runc"); err == nil {
		same, docker := bundle(b, w, "same", false), bundle(b, w, "docker", true)
		variants["runc"] = func(i int) time.Duration { return theirs(b, w, same, i) }
		variants["runc-docker-profile"] = func(i int) time.Duration { return theirs(b, w, docker, i) }
	}
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
	first := &firstByte{at: make(chan time.Time, 1)}
	begin := time.Now()
	id := create(b, e, request("out", "x"))
	attached := attach(e, id, object.Streams{Stdout: first})
	start(b, e, id)
	if err := <-attached; err != nil {
		b.Fatal(err)
	}
	took := (<-first.at).Sub(begin)
	wait(b, e, id)
	if err := e.Remove(context.Background(), id, true, true); err != nil {
		b.Fatal(err)
	}
	return took
}

func theirs(b *testing.B, w *world, dir string, i int) time.Duration {
	b.Helper()
	first := &firstByte{at: make(chan time.Time, 1)}
	id := filepath.Base(w.dir) + filepath.Base(dir) + strconv.Itoa(i)
	cmd := exec.CommandContext(b.Context(), "runc", "--root", filepath.Join(w.dir, "runc"), "run", "--bundle", dir, id)
	cmd.Stdout = first
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return (<-first.at).Sub(begin)
}

// bundle is the same container for runc.
func bundle(b *testing.B, w *world, name string, docker bool) string {
	b.Helper()
	dir := filepath.Join(w.dir, name)
	in := &runspec.Input{
		ID: "bench", Config: container.Config{Cmd: []string{"/guest", "out", "x"}},
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
