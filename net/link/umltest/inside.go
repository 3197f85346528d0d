// SPDX-License-Identifier: Apache-2.0

package umltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skep/net/link"
)

// inside is the init process: it makes the machine usable, and runs the tests.
func inside(m *testing.M) {
	code := 1
	if err := prepare(); err != nil {
		fmt.Println("prepare user-mode Linux:", err) //nolint:forbidigo // for who started the machine
	} else {
		code = m.Run()
	}
	PowerOff(code)
}

// PowerOff ends a machine, and says how its tests did. It does not return.
func PowerOff(code int) {
	fmt.Printf("\n%s%d\n", verdict, code) //nolint:forbidigo // for who started the machine
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // an init process that ends is a panic
}

// tunables make programs do without AVX: see filter.
const tunables = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-XSAVE,-XSAVEC"

func prepare() error {
	dir, err := os.Open(os.Getenv(envDir)) // which may be below what is mounted over
	if err != nil {
		return fmt.Errorf("open directory of the tests: %w", err)
	}
	defer func() { _ = dir.Close() }()
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err = unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	err = errors.Join(
		os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
		os.Setenv("GLIBC_TUNABLES", tunables),
		link.Loopback(),
		loader(),
	)
	if err != nil {
		return err
	}
	if list := os.Getenv(envModule); list != "" {
		if err = load(strings.Split(list, ",")); err != nil {
			return err
		}
	}
	return dir.Chdir()
}

// modprobe is a program for the kernel, and for us, that loads Debian's modules
// of linux.uml.
const modprobe = "/tmp/modprobe"

// loader makes modprobe.
func loader() error {
	const script = `#!/bin/sh
GLIBC_TUNABLES=` + tunables + `
export GLIBC_TUNABLES
exec /sbin/modprobe -d /tmp/root "$@"
`
	return errors.Join(
		os.MkdirAll("/tmp/root/lib", 0o700),
		os.Symlink("/usr/lib/uml/modules", "/tmp/root/lib/modules"),
		os.WriteFile(modprobe, []byte(script), 0o700), //nolint:gosec // it is to be run
		os.WriteFile("/proc/sys/kernel/modprobe", []byte(modprobe), 0),
	)
}

func load(names []string) error {
	out, err := exec.Command(modprobe, append([]string{"-a"}, names...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load modules: %w: %s", err, out)
	}
	return nil
}
