package boottest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// modules are what nodes need of the kernel beyond what every kernel has.
var modules = []string{
	"overlay", "veth", "bridge",
	"nf_tables", "nft_chain_nat", "nft_ct", "nft_fib_ipv4", "nft_masq", "nft_nat", "nft_numgen", "nf_conntrack_netlink",
}

// patience is how long a machine may take from its start to its end.
const patience = 5 * time.Minute

// TestMachine_RunsScripts boots a machine that has only cgroup version 2 and runs
// scripts in it. Inside, it is what runs them.
func TestMachine_RunsScripts(t *testing.T) {
	if stage := os.Getenv(place); stage != "" {
		nodetest.Scripts(t, "/scripts/"+stage, "/bin/skep", "/bin/docker")
		return
	}
	k := findKernel(t, output(t, "../../.ci/kernel"))
	log := boot(t, k, machine(t, k))
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
func machine(t *testing.T, k kernel) string {
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
	i := newInitrd(t)
	i.dir("tmp")
	i.copy("init", self)
	i.copy("bin/skep", nodetest.Binary(t))
	i.link("bin/docker", "skep")
	i.copy("bin/busybox", busybox)
	for n, file := range k.files(t, modules...) {
		i.copy(fmt.Sprintf("modules/%02d-%s", n, filepath.Base(file)), file)
	}
	for _, s := range stages {
		i.copy("scripts/"+s.name+"/"+s.name+".txtar", "testdata/"+s.name+".txtar")
	}
	return i.finish()
}

// boot runs a machine until it powers off and returns what it printed.
func boot(t *testing.T, k kernel, initrd string) string {
	t.Helper()
	// The machine dies with the thread that started it, at the latest.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// One processor costs less than two that wait for each other. QEMU 7.2 does
	// cmpxchg16b wrong, which newer kernels (6.12) use if it is there.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-cx16",
		"-smp", "1", "-m", "1536", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.image, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 loglevel=4 no_timer_check cryptomgr.notests "+place+"=init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems strings.Builder
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		t.Fatalf("qemu-system-x86 is missing: %v", err)
	}
	var log strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		log.WriteString(strings.TrimRight(lines.Text(), "\r") + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("machine: %v\n%s", errors.Join(err, ctx.Err()), problems.String())
	}
	t.Logf("machine used %v of the processors", (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Second))
	return log.String()
}

func output(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}
