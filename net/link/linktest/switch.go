// SPDX-License-Identifier: Apache-2.0

package linktest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/link"
)

// Switch joins machines, which see each other and nothing else.
type Switch struct {
	name string
	n    byte
	last byte
}

// NewSwitch makes a switch without machines.
func NewSwitch(tb testing.TB) *Switch {
	tb.Helper()
	s := &Switch{}
	for s.n = 1; s.name == ""; s.n++ {
		name := fmt.Sprintf("switch%d", s.n)
		err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}})
		if err == nil {
			s.name = name
			break
		}
		if s.n > 200 {
			tb.Fatal(err)
		}
	}
	l, err := netlink.LinkByName(s.name)
	if err != nil {
		tb.Fatal(err)
	}
	// It is no host on its network, and no filter.
	for name, value := range map[string]string{"ipv6/conf/" + s.name + "/disable_ipv6": "1", "bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0"} {
		if err := link.Sysctl("net/"+name, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Machine is a network namespace with an addressed device, eth0, at a switch.
type Machine struct {
	Path string
	// Address and Address6 are those of eth0.
	Address, Address6 netip.Addr
	cable             string
}

// Machine adds a machine to the switch.
func (s *Switch) Machine(tb testing.TB) *Machine {
	tb.Helper()
	s.last++
	m := &Machine{
		Path:     filepath.Join(tb.TempDir(), "ns"),
		Address:  netip.AddrFrom4([4]byte{198, 18, s.n, s.last}),
		Address6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 14: s.n, 15: s.last}),
		cable:    fmt.Sprintf("sw%dp%d", s.n, s.last),
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	defer here.Close()
	if err := link.Create(m.Path, func() error { return m.plug(here, s.name) }); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if l, err := netlink.LinkByName(m.cable); err == nil {
			_ = netlink.LinkDel(l)
		}
		if err := link.Remove(m.Path); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func (m *Machine) plug(here *netlink.Handle, to string) error {
	if err := link.Loopback(); err != nil {
		return err
	}
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = self.Close() }()
	br, err := here.LinkByName(to)
	if err != nil {
		return err
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: m.cable, TxQLen: -1, MasterIndex: br.Attrs().Index, Flags: net.FlagUp},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(self.Fd()), PeerTxQLen: -1,
	}
	if err = here.LinkAdd(pair); err != nil {
		return err
	}
	c, err := link.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	d, _, err := c.Device("eth0")
	if err != nil {
		return err
	}
	if err = c.SetHost(d, d.MAC, []netip.Prefix{netip.PrefixFrom(m.Address, 24), netip.PrefixFrom(m.Address6, 64)}); err != nil {
		return err
	}
	_, err = here.LinkByName(m.cable) // its carrier has come
	return err
}

// Within runs f on a thread that is on the machine.
func (m *Machine) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := link.Within(m.Path, f); err != nil {
		tb.Fatal(err)
	}
}
