// SPDX-License-Identifier: Apache-2.0

package umltest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skep/net/link"
)

// inside is the init process: it makes the machine usable, runs the tests, says
// how they ended, and switches the machine off.
func inside(m *testing.M) {
	code := 1
	if err := prepare(); err != nil {
	} else {
		code = m.Run()
	}
	fmt.Printf("\n%s%d\n", verdict, code) //nolint:forbidigo // for who started the machine
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // an init process that ends is a panic
}

func prepare() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	err := errors.Join(
		os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
		os.Setenv("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-XSAVE,-XSAVEC"), // see filter
		link.Loopback(),
	)
	if err != nil {
		return err
	}
	if list := os.Getenv(envModule); list != "" {
		if err := load(strings.Split(list, ",")); err != nil {
			return err
		}
	}
	return os.Chdir(os.Getenv(envDir))
}

// load loads modules after those that they need, as modules.dep says.
func load(names []string) error {
	dir, err := modulesDir()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("read modules: %w", err)
	}
	needs := map[string][]string{} // by name: its file, and those that it needs
	for line := range strings.Lines(string(b)) {
		file, others, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[moduleName(file)] = append([]string{file}, strings.Fields(others)...)
	}
	for _, name := range names {
		files, ok := needs[strings.ReplaceAll(name, "-", "_")]
		if !ok {
			return fmt.Errorf("load module %s: there is none", name)
		}
		for i := len(files) - 1; i >= 0; i-- { // what is needed by others is last
			if err := insert(filepath.Join(dir, files[i])); err != nil {
				return fmt.Errorf("load module %s: %w", name, err)
			}
		}
	}
	return nil
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", filepath.Base(file), err)
	}
	return nil
}
