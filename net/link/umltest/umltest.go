// SPDX-License-Identifier: Apache-2.0

// Package umltest runs tests of a package inside user-mode Linux: a kernel that
// is an ordinary process, and that has what the machine's own may lack: IPVS,
// ESP, and modules that can be loaded.
//
// The package's TestMain calls [Main]. A test outside calls [Run] with a pattern
// of tests, which boots linux.uml (of Debian's package user-mode-linux) with this
// very test binary as its init process; the tests inside are those whose names
// match, and they begin with:
//
//	if !umltest.Inside() {
//		t.Skip("runs in user-mode Linux: see TestInUML")
//	}
//
// Inside, the root directory is the machine's own by hostfs: whatever is to be
// written belongs below /tmp or /run, which are memory. All of the kernel is the
// test's; several nodes are namespaces. It has one processor, and neither the nft
// families ip, inet and ip6 nor NAT by nftables.
package umltest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The environment tells the three lives of the test binary apart.
const (
	envLaunch = "SKEP_UML_LAUNCH" // set: become linux.uml
	envInside = "SKEP_UML_INSIDE" // set: the init process inside
	envDir    = "SKEP_UML_DIR"
	envModule = "SKEP_UML_MODULES"
)

const (
	program = "linux.uml"
	timeout = 3 * time.Minute
	verdict = "the tests in the machine ended with "
)

// Inside tells whether this process is in user-mode Linux.
func Inside() bool { return os.Getenv(envInside) != "" }

// Main is for TestMain. Outside it ends with run, inside with the power.
func Main(m *testing.M, run func(*testing.M)) {
	switch {
	case os.Getenv(envLaunch) != "":
		launch()
	case Inside():
		inside(m)
	default:
		run(m)
	}
}

// Run runs the tests whose names match the pattern (of go test -run) inside,
// with these kernel modules loaded, and fails if one does.
func Run(t *testing.T, pattern string, modules ...string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%s is missing: install user-mode-linux", program)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self,
		"mem=1G", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null", "con0=fd:0,fd:1", "uml_dir="+t.TempDir(),
		"init="+self, "GODEBUG=cpu.all=off", envInside+"=1", envDir+"="+dir, envModule+"="+strings.Join(modules, ","),
		"--", "-test.v", "-test.run="+pattern, "-test.timeout="+timeout.String())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), envLaunch+"=1", "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// Its processes are a group: none is left behind.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	Judge(t, fmt.Sprintf("user-mode Linux (%v)", err), strings.ReplaceAll(out.String(), "\r", ""))
}

// Judge fails if what a machine printed does not end as [PowerOff] with 0, or no
// test has passed in it.
func Judge(t *testing.T, machine, text string) {
	t.Helper()
	if passed := strings.Count(text, "--- PASS: "); !strings.Contains(text, verdict+"0\n") || passed == 0 {
		t.Fatalf("in %s, %d tests passed:\n%s", machine, passed, text)
	}
	t.Log(report(text))
}

// report is the output without what the kernel says.
func report(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if regexp.MustCompile(`^\s*(=== RUN|---|\w+_test\.go:)`).MatchString(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}
