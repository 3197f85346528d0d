// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"skep/net/kmod"
	"skep/net/link/vmtest"
)

func TestMain(m *testing.M) {
	vmtest.Main(m, func(m *testing.M) { os.Exit(m.Run()) }) //nolint:forbidigo // the verdict is this process's
}

func TestInVM(t *testing.T) {
	vmtest.Run(t, vmtest.Machine{
		Tests: "TestInside", Skip: "TestInside_Never", Modules: []string{"veth"}, Loadable: []string{"ip_vs_rr"}, Programs: []string{"ipvsadm"},
	})
}

func TestInside(t *testing.T) {
	if !vmtest.Inside() {
		t.Skip("runs in a virtual machine: see TestInVM")
	}
	if os.Getpid() != 1 {
		t.Errorf("process %d is not init", os.Getpid())
	}
	loaded := func(want map[string]bool) {
		t.Helper()
		b, err := os.ReadFile("/proc/modules")
		if err != nil {
			t.Fatal(err)
		}
		for name, there := range want {
			if strings.Contains(string(b), name+" ") != there {
				t.Errorf("module %s is loaded: %t", name, !there)
			}
		}
	}
	loaded(map[string]bool{"veth": true, "ip_vs": false, "ip_vs_rr": false})
	if err := kmod.Load("ip_vs_rr"); err != nil {
		t.Fatal(err)
	}
	loaded(map[string]bool{"ip_vs": true, "ip_vs_rr": true})
	if out, err := exec.CommandContext(t.Context(), "ipvsadm", "-Ln").CombinedOutput(); err != nil || !strings.Contains(string(out), "IP Virtual Server") {
		t.Errorf("ipvsadm: %v\n%s", err, out)
	}
}

func TestInside_Never(t *testing.T) {
	if vmtest.Inside() {
		t.Error("it was to be skipped")
	}
}
