package images_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/image"

	"skep/exec/images"
)

func TestConcurrently_PulledLoadedPrunedAndUsed(t *testing.T) {
	host := serve(t)
	shared := layer(t, file{name: "shared", body: strings.Repeat("shared", 1000)})
	var refs []string
	archives := map[string][]byte{}
	for i := range 4 {
		img := image(t, runtime.GOARCH, shared, layer(t, file{name: "own", body: fmt.Sprint(i)}))
		ref := fmt.Sprintf("%s/app%d:1", host, i)
		push(t, ref, img)
		refs, archives[ref] = append(refs, ref), saved(t, ref, img)
	}
	n := open(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 15 {
				ref := refs[r.IntN(len(refs))]
				var err error
				if r.IntN(2) == 0 {
					err = n.Pull(t.Context(), ref, "", nil, nil)
				} else {
					err = n.Load(t.Context(), bytes.NewReader(archives[ref]), nil)
				}
				if err != nil {
					t.Errorf("get %s: %v", ref, err)
				}
				fs, err := n.Rootfs(t.Context(), ref)
				if errdefs.IsNotFound(err) {
					continue // pruned in between
				}
				if err != nil {
					t.Errorf("use %s: %v", ref, err)
					continue
				}
				for _, name := range []string{"shared", "own"} {
					if !has(fs, name) {
						t.Errorf("%s has no %s", ref, name)
					}
				}
				fs.Release()
			}
		})
	}
	wg.Go(func() {
		r := rand.New(rand.NewPCG(9, 9))
		for range 40 {
			if _, err := n.Prune(t.Context(), r.IntN(2) == 0, func(api.Summary) bool { return r.IntN(2) == 0 }); err != nil {
				t.Errorf("prune: %v", err)
			}
			if _, err := n.List(t.Context()); err != nil {
				t.Errorf("list: %v", err)
			}
		}
	})
	wg.Wait()
	if _, err := n.Prune(t.Context(), false, nil); err != nil {
		t.Error(err)
	}
	n.empty(t)
}

func has(fs images.Rootfs, name string) bool {
	for _, dir := range fs.Lower {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// TestKilled loads, tags and removes images in a process that is killed at any
// moment: what it said was done is there, and nothing unfinished stays.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("SKEP_TEST_KILLED"); dir != "" {
		worker(t, dir)
		return
	}
	n := open(t)
	if err := os.WriteFile(n.dir+".tar", saved(t, "base:1", image(t, runtime.GOARCH,
		layer(t, file{name: "f", body: strings.Repeat("content", 10_000)}))), 0o600); err != nil {
		t.Fatal(err)
	}
	tags := map[string]bool{}
	for round := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "SKEP_TEST_KILLED="+n.dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err = cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killer := time.AfterFunc(time.Duration(20+round*15)*time.Millisecond, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if tag, ok := strings.CutPrefix(lines.Text(), "tagged "); ok {
				tags[tag] = true
			}
			if tag, ok := strings.CutPrefix(lines.Text(), "removing "); ok {
				delete(tags, tag)
			}
		}
		_ = cmd.Wait() // killed
		killer.Stop()

		n.reopen(t)
		n.tidy(t)
		list, err := n.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			fs, err := n.Rootfs(t.Context(), i.ID)
			if err != nil {
				t.Errorf("round %d: %s is on record, but %v", round, i.ID, err)
				continue
			}
			fs.Release()
		}
		for tag := range tags {
			if !n.Has(t, tag) {
				t.Errorf("round %d: %s was acknowledged and is gone", round, tag)
			}
		}
	}
	if len(tags) == 0 {
		t.Error("no process came far enough")
	}
}

// worker says what it does until it is killed.
func worker(t *testing.T, dir string) {
	t.Helper()
	n := &node{dir: dir}
	n.reopen(t)
	archive, err := os.ReadFile(dir + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if err = n.Load(t.Context(), bytes.NewReader(archive), nil); err != nil {
			t.Fatal(err)
		}
		tag := fmt.Sprintf("kept:%d-%d", os.Getpid(), i)
		if err = n.Tag(t.Context(), "base:1", tag); err != nil {
			t.Fatal(err)
		}
		say("tagged " + tag)
		if i%3 == 2 {
			say("removing " + tag)
			if _, err = n.Remove(t.Context(), tag, false, true); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
}

// say writes a line at once, so that it is said when the process is killed.
func say(line string) { _, _ = io.WriteString(os.Stdout, line+"\n") }
