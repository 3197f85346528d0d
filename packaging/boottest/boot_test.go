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

// TestMachine_RunsScripts boots machines that have only cgroup version 2 and runs
// scripts in them. Inside, it is what runs them.
func TestMachine_RunsScripts(t *testing.T) {
	switch stage := os.Getenv(place); stage {
	case "":
	case "swarm":
		for _, l := range kernel.Prepare(t.Context()) { // for the switch
			t.Error(l)
		}
		nodetest.SwarmScripts(t, "/scripts/"+stage, "/bin/skep", "/bin/docker")
		return
	default:
		nodetest.Scripts(t, "/scripts/"+stage, "/bin/skep", "/bin/docker")
		return
	}
	k := vmtest.FindKernel(t)
	initrd := machine(t, k)
	for _, list := range []string{"bare,service,delegated", "swarm"} {
		t.Run(list, func(t *testing.T) {
			t.Parallel() // each has one processor
			log := vmtest.Boot(t, k, initrd, place+"=init", program+"="+list)
			for name := range strings.SplitSeq(list, ",") {
				if !strings.Contains(log, fmt.Sprintf(report, name, 0)) {
					t.Errorf("stage %s did not pass", name)
				}
			}
			if t.Failed() || testing.Verbose() {
				t.Log(log)
			}
		})
	}
}

// tools are those of the machines of a swarm, and of its script; applets are
// busybox's.
var (
	tools   = []string{"sh", "unshare", "ip", "ipvsadm"}
	applets = []string{"cat", "grep", "mkdir", "mount", "nsenter", "sleep", "umount"}
)

// machine makes the first file system of machines that run the stages.
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
	for _, name := range applets {
		i.Link("bin/"+name, "busybox")
	}
	for _, name := range tools {
		i.Program(name)
	}
	i.Link("bin/sh", "/usr/bin/sh")
	i.Modules(k, append(kernel.Modules(), "overlay")...)
	for _, s := range stages {
		i.Copy("scripts/"+s.name+"/"+s.name+".txtar", "testdata/"+s.name+".txtar")
	}
	return i.Finish()
}
