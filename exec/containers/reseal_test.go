package containers_test

import (
	"os"
	"path/filepath"
	"testing"

	"skep/exec/containers"
)

// sealedWith are the keys that the containers' files are sealed with.
func sealedWith(t *testing.T, w *world) string {
	t.Helper()
	keys := ""
	for _, pattern := range []string{"config*", "state*"} {
		files, err := filepath.Glob(filepath.Join(w.dir, "containers", "*", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			keys += string(b[:1])
		}
	}
	return keys
}

func TestReseal_LeavesNothingForTheOldKey(t *testing.T) {
	w := newWorld(t)
	e, stop := w.open(t)
	runs := create(t, e, request("deaf"))
	start(t, e, runs)
	rests := create(t, e, request("exit", "0"))
	// A crash left a file that was not whole yet.
	if err := os.WriteFile(filepath.Join(w.dir, "containers", rests, "config.tmp"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sealedWith(t, w); got != "aaaa" {
		t.Fatalf("before: sealed with %q", got)
	}
	w.sealer.keys = "ba"
	for range 2 {
		if err := e.Reseal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := sealedWith(t, w); got != "bbb" {
			t.Fatalf("after: sealed with %q", got)
		}
	}
	w.sealer.keys = "b"
	stop()
	e, stop = w.open(t)
	defer stop()
	for _, id := range []string{runs, rests} {
		c, err := e.Inspect(t.Context(), id, false)
		if err != nil {
			t.Fatal(err)
		}
		if c.State.Running != (id == runs) {
			t.Errorf("container runs: %t", c.State.Running)
		}
		if err := e.Remove(t.Context(), id, true, false); err != nil {
			t.Error(err)
		}
	}
}

func TestDiscard_HasTheNextStartRemoveWhatNoKeyOpens(t *testing.T) {
	w := newWorld(t)
	e, stop := w.open(t)
	id := create(t, e, request("deaf"))
	start(t, e, id)
	create(t, e, request("exit", "0"))
	stop()
	w.sealer.keys = "c"
	if _, err := containers.Open(t.Context(), w.config(nil)); err == nil {
		t.Fatal("opened without the key")
	}
	if err := containers.Discard(filepath.Join(w.dir, "containers")); err != nil {
		t.Fatal(err)
	}
	e, stop = w.open(t)
	defer stop()
	list, err := e.List(t.Context(), true, false)
	if err != nil || len(list) > 0 {
		t.Errorf("got %v, %v", list, err)
	}
	for _, dir := range []string{"containers", "run/containers", "run/libcontainer"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, dir))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
	eventually(t, "what was killed is gone", func() bool { return len(running(t, w.dir)) == 0 })
	if err := containers.Discard(filepath.Join(w.dir, "nowhere")); err != nil {
		t.Error(err)
	}
}
