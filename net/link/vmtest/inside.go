// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skep/net/kmod"
	"skep/net/link"
	"skep/net/link/umltest"
)

// inside is the init process: it makes the machine usable, and runs the tests.
// It does not return.
func inside(m *testing.M) {
	code := 1
	if err := prepare(); err != nil {
		fmt.Println("prepare the virtual machine:", err) //nolint:forbidigo // for who started the machine
	} else {
		code = m.Run()
	}
	umltest.PowerOff(code)
}

func prepare() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil { //nolint:gosec // all of the machine is the test's
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := errors.Join(os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), link.Loopback()); err != nil {
		return err
	}
	if list := os.Getenv(envModules); list != "" {
		return kmod.Load(strings.Split(list, ",")...)
	}
	return nil
}
