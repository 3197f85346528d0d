// SPDX-License-Identifier: Apache-2.0

// Package linktest runs tests in network and mount namespaces of their own, so
// that they may do to the kernel what they like and leave nothing behind.
//
// It needs no privileges where the kernel lets users make namespaces; where it
// does not, the tests fail: they are never skipped.
package linktest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/link"
)

const inside = "SKEP_LINKTEST_INSIDE"

// Main runs the tests of a package in fresh namespaces. It is to be called by
// TestMain and does not return.
func Main(m *testing.M) {
	code := 0
	if os.Getenv(inside) == "" {
		code = again()
	} else if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare test namespaces:", err)
		code = 1
	} else {
		code = m.Run()
	}
	os.Exit(code) //nolint:forbidigo // the verdict of the process inside is this one's
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	err := cmd.Run()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return failed.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return link.Loopback()
}

// Host is another machine, with a cable to this one.
type Host struct {
	// Path is where its namespace is pinned.
	Path string
	// Address is the machine's own, Gateway is this one's at the cable.
	Address, Gateway netip.Addr
}

// NewHost makes a machine with a cable to this one, over which it sends
// everything. The cable also is this machine's default route if it has none.
func NewHost(tb testing.TB) *Host {
	tb.Helper()
	n := freeCable(tb)
	h := &Host{
		Path:    filepath.Join(tb.TempDir(), "ns"),
		Gateway: netip.AddrFrom4([4]byte{198, 51, n, 1}),
		Address: netip.AddrFrom4([4]byte{198, 51, n, 2}),
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	defer here.Close()
	name := fmt.Sprintf("cable%d", n)
	if err := link.Create(h.Path, func() error { return h.plug(here, name) }); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if l, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(l)
		}
		if err := link.Remove(h.Path); err != nil {
			tb.Error(err)
		}
	})
	return h
}

// freeCable is the first number that no cable has.
func freeCable(tb testing.TB) byte {
	tb.Helper()
	c, err := link.Open()
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	names, err := c.Names("cable")
	if err != nil {
		tb.Fatal(err)
	}
	n := byte(1)
	for slices.Contains(names, fmt.Sprintf("cable%d", n)) {
		n++
	}
	return n
}

func (h *Host) plug(here *netlink.Handle, name string) error {
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = self.Close() }()
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: "eth0", PeerNamespace: netlink.NsFd(self.Fd()), PeerTxQLen: -1,
	}
	if err = here.LinkAdd(pair); err != nil {
		return err
	}
	if err = setUp(here, name, h.Gateway); err != nil {
		return err
	}
	there, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer there.Close()
	if err = errors.Join(link.Loopback(), setUp(there, "eth0", h.Address)); err != nil {
		return err
	}
	l, err := there.LinkByName("eth0")
	if err != nil {
		return err
	}
	return there.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: h.Gateway.AsSlice()})
}

func setUp(h *netlink.Handle, name string, a netip.Addr) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	err = h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	return errors.Join(err, h.LinkSetUp(l))
}

// Within runs f on a thread that is on the machine.
func (h *Host) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := link.Within(h.Path, f); err != nil {
		tb.Fatal(err)
	}
}

// OpenIn opens a connection to the namespace pinned at path. While it is open
// the namespace does not end.
func OpenIn(path string) (*link.Conn, error) {
	var c *link.Conn
	err := link.Within(path, func() (err error) {
		c, err = link.Open()
		return err
	})
	return c, err
}
