// SPDX-License-Identifier: Apache-2.0

// Package vmtest boots machines for tests: Debian's kernel for clouds in QEMU,
// without KVM. It is the kernel that most users have: older than that of the
// machine that tests, with IPVS and all of nftables, and in modules.
//
// The package's TestMain calls [Main]. A test outside calls [Run], which boots
// the kernel with this very test binary as its init process; the tests inside are
// those whose names match, and ask [Inside]. For machines with more in them there
// are [Initrd] and [Boot].
//
// Inside there is nothing but the test binary, the modules, and the programs
// that were asked for; all is memory. It is slow: ten times slower than outside,
// and two seconds until it begins. But its clock goes by its own work, so no load
// of this machine makes anything late, and to wait takes no time. It needs
// qemu-system-x86 and what .ci/kernel unpacks, but no root and no processor's
// help. Where a kernel with less will do skep/net/link/umltest is quicker.
package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skep/net/link/umltest"
)

// envInside is set for the init process inside.
const (
	envInside  = "SKEP_VM_INSIDE"
	envModules = "SKEP_VM_MODULES"
)

// Machine is what is to be run, and in what.
type Machine struct {
	Tests   string   // the pattern of those to run, as of go test -run
	Skip    string   // the pattern of those not to run, as of go test -skip
	Modules []string // of the kernel, loaded before the tests
	// Loadable ones are there, and not loaded.
	Loadable []string
	Programs []string // of this machine
}

// Inside tells whether this process is in such a machine.
func Inside() bool { return os.Getenv(envInside) != "" }

// Main is for TestMain. Outside it ends with run, inside with the power.
func Main(m *testing.M, run func(*testing.M)) {
	if Inside() {
		inside(m)
	}
	run(m)
}

// Run runs tests inside, and fails if one does.
func Run(t *testing.T, m Machine) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := FindKernel(t)
	i := NewInitrd(t)
	i.Dir("tmp")
	i.Copy("init", self)
	i.libraries(self)
	for _, name := range m.Programs {
		i.Program(name)
	}
	i.Modules(k, append(m.Modules, m.Loadable...)...)
	args := []string{envInside + "=1", envModules + "=" + strings.Join(m.Modules, ","), "--", "-test.v", "-test.run=" + m.Tests, "-test.timeout=" + patience.String()}
	if m.Skip != "" {
		args = append(args, "-test.skip="+m.Skip)
	}
	umltest.Judge(t, "a virtual machine", Boot(t, k, i.Finish(), args...))
}

// Modules adds kernel modules, those that they need, and the lists by which
// they are found.
func (i *Initrd) Modules(k Kernel, names ...string) {
	i.t.Helper()
	const root = "lib/modules"
	release := filepath.Base(k.modules)
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		i.Copy(filepath.Join(root, release, list), filepath.Join(k.modules, list))
	}
	for _, file := range k.files(i.t, names...) {
		in, err := filepath.Rel(k.modules, file)
		if err != nil {
			i.t.Fatal(err)
		}
		i.Copy(filepath.Join(root, release, in), file)
	}
}
