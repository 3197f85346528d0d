package main_test

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Every start of a container and every exec pays for the initialisation of
// this program twice. It is counted, not timed; a number that grows asks for a
// reason.
func TestRuntime_InitialisesLittle(t *testing.T) {
	const maxPackages, maxBytes, maxAllocs = 85, 48 << 10, 330
	exe := filepath.Join(t.TempDir(), "skep")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "seccomp netgo osusergo", "-o", exe, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = []string{"GODEBUG=inittrace=1"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 {
		t.Fatalf("a start without a door: %v: %s", err, out)
	}
	packages, bytes, allocs := 0, 0, 0
	for line := range strings.Lines(string(out)) {
		// init PACKAGE @N ms, N ms clock, N bytes, N allocs
		f := strings.Fields(line)
		if len(f) != 11 || f[0] != "init" {
			continue
		}
		n, err1 := strconv.Atoi(f[7])
		m, err2 := strconv.Atoi(f[9])
		if err1 != nil || err2 != nil {
			t.Fatalf("trace says %q", line)
		}
		packages, bytes, allocs = packages+1, bytes+n, allocs+m
	}
	t.Logf("%d packages, %d bytes, %d allocations", packages, bytes, allocs)
	if packages == 0 {
		t.Fatalf("no trace: %s", out)
	}
	if packages > maxPackages || bytes > maxBytes || allocs > maxAllocs {
		t.Errorf("more than %d packages, %d bytes or %d allocations", maxPackages, maxBytes, maxAllocs)
	}
}
