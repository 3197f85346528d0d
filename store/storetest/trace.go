package storetest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const clockFormat = "04:05.000000"

// Trace is what happened in a simulation, and what of it must not happen.
type Trace struct {
	mu    sync.Mutex
	lines []string
	bad   []string
}

// Log notes an event.
func (t *Trace) Log(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, time.Now().Format(clockFormat)+" "+fmt.Sprintf(format, args...))
}

// Violate notes that an invariant does not hold.
func (t *Trace) Violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.Log("VIOLATION: %s", text)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bad = append(t.bad, text)
}

// Violations are the invariants that do not hold.
func (t *Trace) Violations() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.bad)
}

// Report fails the test if there are violations. A simulation does not replay:
// so all that is known is kept in a file.
func (t *Trace) Report(tb testing.TB, seed uint64, h *History) {
	tb.Helper()
	bad := t.Violations()
	if len(bad) == 0 {
		return
	}
	dir := os.TempDir()
	if f := flag.Lookup("test.artifacts"); f != nil && f.Value.String() == "true" {
		dir = tb.ArtifactDir()
	}
	name := filepath.Join(dir, fmt.Sprintf("skep-%s-seed-%d.trace", strings.ReplaceAll(tb.Name(), "/", "-"), seed))
	f, err := os.Create(name)
	if err == nil {
		defer f.Close()
		t.mu.Lock()
		for _, l := range t.lines {
			fmt.Fprintln(f, l)
		}
		t.mu.Unlock()
		h.Print(f)
	}
	tb.Errorf("%s\n(%d in all) trace and history: %s (err %v); again: go test -run '%s' -artifacts -args -seeds 1 -seed %d",
		bad[0], len(bad), name, err, tb.Name(), seed)
}

// Bubble runs do in a synctest bubble. Raft drops some requests when it ends,
// and who waits for their answers waits for ever: that alone may be left.
func Bubble(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil && !strings.Contains(fmt.Sprint(r), "blocked goroutines remain") {
			panic(r)
		}
	}()
	synctest.Test(t, do)
}
