// SPDX-License-Identifier: Apache-2.0

package umltest_test

import (
	"os"
	"strings"
	"testing"

	"skep/net/link/umltest"
)

func TestMain(m *testing.M) {
	umltest.Main(m, func(m *testing.M) { os.Exit(m.Run()) }) //nolint:forbidigo // the verdict is this process's
}

func TestInUML(t *testing.T) { umltest.Run(t, "TestInside", "veth", "ip_vs_rr") }

func TestInside(t *testing.T) {
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	if os.Getpid() != 1 {
		t.Errorf("process %d is not init", os.Getpid())
	}
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"veth ", "ip_vs ", "ip_vs_rr "} {
		if !strings.Contains(string(b), name) {
			t.Errorf("module %s is not loaded", name)
		}
	}
	if _, err := os.Stat("umltest_test.go"); err != nil {
		t.Errorf("not in the package's directory: %v", err)
	}
}
