package runspec

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

func upper(s string) string { return strings.ToUpper(s) }

// secure applies the security options and what holds without them.
func (in *Input) secure(s *specs.Spec) error {
	profile := ""
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = in.Host.MaskedPaths, in.Host.ReadonlyPaths
	if s.Linux.MaskedPaths == nil {
		s.Linux.MaskedPaths = maskedPaths()
	}
	if s.Linux.ReadonlyPaths == nil {
		s.Linux.ReadonlyPaths = readonlyPaths()
	}
	for _, opt := range in.Host.SecurityOpt {
		key, val, ok := strings.Cut(opt, "=")
		if !ok {
			key, val, _ = strings.Cut(opt, ":")
		}
		switch key {
		case "no-new-privileges":
			on, err := strconv.ParseBool(val)
			if val != "" && err != nil {
				return object.Errorf(errdefs.ErrInvalidArgument, "invalid --security-opt 2: %q", opt)
			}
			s.Process.NoNewPrivileges = val == "" || on
		case "seccomp":
			profile = val
		case "systempaths":
			if val == "unconfined" {
				s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			}
		case "label", "apparmor", "writable-cgroups":
			// This node has neither SELinux nor AppArmor profiles to choose from.
		default:
			return object.Errorf(errdefs.ErrInvalidArgument, "invalid --security-opt 2: %q", opt)
		}
	}
	if in.Host.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Process.NoNewPrivileges = false
		return nil
	}
	return filter(s, profile)
}

// filter sets the system calls that the container may make.
func filter(s *specs.Spec, profile string) (err error) {
	switch profile {
	case "unconfined":
		return nil
	case "", "builtin", "default":
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	default:
		s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s)
	}
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "%w", err)
	}
	if s.Linux.Seccomp == nil || profile != "" && profile != "builtin" && profile != "default" {
		return nil
	}
	narrow(s.Linux.Seccomp)
	return nil
}

// narrow closes the ways around the profile's ban on AF_VSOCK and AF_ALG: the
// node's own API may listen on AF_VSOCK. Calls of foreign architectures (ia32,
// x32) are refused by leaving those out, which also makes the filter a third
// of the size, in every start and exec.
func narrow(p *specs.LinuxSeccomp) {
	p.Architectures = native()
	for i := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(p.Syscalls[i].Names), func(n string) bool { return n == "socketcall" })
	}
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(c specs.LinuxSyscall) bool { return len(c.Names) == 0 })
	eperm := uint(unix.EPERM)
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
		Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &eperm,
	})
}

func native() []specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64}
	}
	panic(fmt.Sprintf("no seccomp architecture for %s", runtime.GOARCH))
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
