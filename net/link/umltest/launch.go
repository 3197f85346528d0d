// SPDX-License-Identifier: Apache-2.0

package umltest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// launch becomes linux.uml. It does not return.
func launch() {
	runtime.LockOSThread() // the filter is the thread's that calls exec
	err := filter()
	if err == nil {
		var path string
		if path, err = exec.LookPath(program); err == nil {
			err = syscall.Exec(path, append([]string{program}, os.Args[1:]...), []string{"HOME=" + os.Getenv("TMPDIR"), "TMPDIR=" + os.Getenv("TMPDIR")})
		}
	}
	fmt.Fprintln(os.Stderr, "become user-mode Linux:", err)
	os.Exit(1) //nolint:forbidigo // there is nobody to return to
}

// Of struct seccomp_data: the number of the system call, and the lower half of
// its third argument.
const (
	offsetNumber = 0
	offsetThird  = 16 + 2*8
)

// noteXstate is NT_X86_XSTATE of elf.h.
const noteXstate = 0x202

// filter makes ptrace refuse to speak of the extended state of the processor.
// user-mode Linux keeps less room for it than newer processors need (those with
// AMX), and dies; refused, it takes the older registers alone. Then it does not
// keep those of AVX apart for threads, and no program inside may use them.
func filter() error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_PTRACE, SkipFalse: 3},
		bpf.LoadAbsolute{Off: offsetThird, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: noteXstate, SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&p)), 0, 0)
}
