package boottest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"skep/appliance/nodetest"
	"skep/net/kernel"
	"skep/net/link/vmtest"
)

// TestMachine_RunsScripts boots a machine that has only cgroup version 2 and runs
// scripts in it. Inside, it is what runs them.
func TestMachine_RunsScripts(t *testing.T) {
	if stage := os.Getenv(place); stage != "" {
		nodetest.Scripts(t, "/scripts/"+stage, "/bin/skep", "/bin/docker")
		return
	}
	k := vmtest.FindKernel(t)
	log := vmtest.Boot(t, k, machine(t, k), place+"=init")
	for _, s := range stages {
		if !strings.Contains(log, fmt.Sprintf(report, s.name, 0)) {
			t.Errorf("stage %s did not pass", s.name)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Log(log)
	}
}

// machine makes the first file system of a machine that runs the stages.
func machine(t *testing.T, k vmtest.Kernel) string {
	t.Helper()
	self := filepath.Join(t.TempDir(), "init")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-tags", "netgo osusergo", "-ldflags", "-s -w", "-o", self, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: install busybox-static")
	}
	i := vmtest.NewInitrd(t)
	i.Dir("tmp")
	i.Copy("init", self)
	i.Copy("bin/skep", nodetest.Binary(t))
	i.Link("bin/docker", "skep")
	i.Copy("bin/busybox", busybox)
	i.Modules(k, append(kernel.Modules(), "overlay")...)
	for _, s := range stages {
		i.Copy("scripts/"+s.name+"/"+s.name+".txtar", "testdata/"+s.name+".txtar")
	}
	return i.Finish()
}
