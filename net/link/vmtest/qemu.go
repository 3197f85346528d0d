// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a machine may take from its start to its end.
const patience = 10 * time.Minute

// Boot runs a machine until it powers off, and returns what it printed. What is
// added to the kernel's command line comes to its first process: name=value in
// the environment and, after --, the arguments.
func Boot(t *testing.T, k Kernel, initrd string, add ...string) string {
	t.Helper()
	// The machine dies with the thread that started it, at the latest.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	line := append([]string{"console=ttyS0 panic=-1 loglevel=4 no_timer_check cryptomgr.notests"}, add...)
	// One processor costs less than two that wait for each other. Its clock counts
	// its instructions, two nanoseconds each: nothing is late because this machine
	// is loaded, and when there is nothing to do the next timer ends at once. QEMU
	// 7.2 does cmpxchg16b wrong, which newer kernels (6.12) use if it is there.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-cpu", "max,-cx16",
		"-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-rtc", "clock=vm",
		"-smp", "1", "-m", "1536", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.image, "-initrd", initrd, "-append", strings.Join(line, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems strings.Builder
	cmd.Stderr = &problems
	start := time.Now()
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
	t.Logf("machine ran for %v and used %v of the processors", time.Since(start).Round(time.Second),
		(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Second))
	return log.String()
}
