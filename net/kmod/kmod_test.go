// SPDX-License-Identifier: Apache-2.0

package kmod_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skep/net/kmod"
	"skep/net/link/umltest"
)

func TestMain(m *testing.M) {
	umltest.Main(m, func(m *testing.M) { os.Exit(m.Run()) }) //nolint:forbidigo // the verdict is this process's
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep": "kernel/lib/crc.ko.xz:\n" +
			"kernel/net/conntrack.ko.xz: kernel/lib/crc.ko.xz\n" +
			"kernel/net/ip_vs-rr.ko.xz: kernel/net/ip_vs.ko.xz kernel/net/conntrack.ko.xz kernel/lib/crc.ko.xz\n",
		"modules.builtin": "kernel/net/veth.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"ip_vs_rr": "kernel/lib/crc.ko.xz kernel/net/conntrack.ko.xz kernel/net/ip_vs.ko.xz kernel/net/ip_vs-rr.ko.xz",
		"crc":      "kernel/lib/crc.ko.xz",
		"veth":     "",
	} {
		files, err := kmod.Find(dir, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, strings.Join(files, " ")); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	if err := kmod.LoadFrom(dir, "ip_vs_wrr"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestInUML(t *testing.T) { umltest.Run(t, "TestLoads") }

func TestLoads(t *testing.T) {
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/usr/lib/uml/modules", unix.ByteSliceToString(u.Release[:]))
	for range 2 { // one that is loaded is no error
		if err := kmod.LoadFrom(dir, "ip_vs_rr", "ip-vs-wrr"); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ip_vs ", "ip_vs_rr ", "ip_vs_wrr ", "nf_conntrack "} {
		if !strings.Contains(string(b), name) {
			t.Errorf("%s is not loaded", name)
		}
	}
}
