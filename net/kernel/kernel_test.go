// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"skep/net/kernel"
	"skep/net/link/vmtest"
)

func TestMain(m *testing.M) {
	vmtest.Main(m, func(m *testing.M) { os.Exit(m.Run()) }) //nolint:forbidigo // the verdict is this process's
}

func TestInVM(t *testing.T) {
	modules := kernel.Modules()
	if vmtest.Inside() {
		t.Skip("is in a virtual machine")
	}
	// One is not there.
	modules = slices.DeleteFunc(modules, func(name string) bool { return name == "vxlan" })
	vmtest.Run(t, vmtest.Machine{Tests: "^TestPrepare$", Loadable: modules})
}

// A kernel that has everything in modules, and no program that loads them.
func TestPrepare(t *testing.T) {
	if !vmtest.Inside() {
		t.Skip("runs in a virtual machine: see TestInVM")
	}
	for range 2 { // what is loaded is no error
		lacks := kernel.Prepare(t.Context())
		if len(lacks) != 1 || lacks[0].Part != "VXLAN" || !errors.Is(lacks[0].Err, fs.ErrNotExist) {
			t.Fatalf("the kernel lacks %q, want VXLAN", lacks)
		}
		const want = "this kernel has no VXLAN: there are no networks across nodes, nor ports that all nodes publish (add vxlan: operation not supported; load module vxlan: "
		if text := lacks[0].String(); !strings.HasPrefix(text, want) {
			t.Errorf("it says %q, want %q", text, want)
		}
	}
	loaded, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ip_vs_rr ", "nft_numgen ", "veth ", "esp4 "} {
		if !strings.Contains(string(loaded), name) {
			t.Errorf("%s is not loaded", name)
		}
	}
}
