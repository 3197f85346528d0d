// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair is a pair of devices: one in this namespace, the port of a bridge that
// is told who is behind it and learns nothing; its peer in another namespace.
type Pair struct {
	Name, Bridge string
	Peer         string
	MAC          net.HardwareAddr
	MTU          int
	Addresses    []netip.Prefix
	// SoftwareChecksums: see the function.
	SoftwareChecksums bool
}

// Join makes the pair with the peer in the namespace pinned at path. When it
// returns packets pass; if it fails, or the process dies meanwhile, there is at
// most the port, which is to be removed, and none of its frames has passed.
func (c *Conn) Join(p Pair, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("add veth %s: %w", p.Name, err)
	}
	defer func() { _ = ns.Close() }()
	br, err := c.h.LinkByName(p.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", p.Bridge, err)
	}
	err = c.h.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.Name, MTU: p.MTU, TxQLen: -1, MasterIndex: br.Attrs().Index},
		PeerName:  p.Peer, PeerNamespace: netlink.NsFd(ns.Fd()), PeerHardwareAddr: p.MAC, PeerMTU: uint32(p.MTU), PeerTxQLen: -1,
	})
	if err != nil {
		return fmt.Errorf("add veth %s: %w", p.Name, err)
	}
	if err := c.EnsurePort(p.Name, p.MAC); err != nil {
		return err
	}
	if err := Within(path, p.inside); err != nil {
		return err
	}
	return c.settle(p.Name)
}

// EnsurePort tells the bridge who is behind a port, to send there nothing that
// is for others and to learn nothing there, and sets it up.
func (c *Conn) EnsurePort(name string, mac net.HardwareAddr) error {
	port, ok, err := c.Device(name)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("find link %s: %w", name, unix.ENODEV))
	}
	if err := c.Treat(port, Treatment{}); err != nil {
		return err
	}
	if err := c.Program(port.Index, []Entry{{Table: Stations, MAC: MAC(mac)}}, nil); err != nil {
		return err
	}
	if err := c.h.LinkSetUp(port.link()); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// inside sets up the peer, in whose namespace the thread is.
func (p Pair) inside() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	c := &Conn{h: h}
	peer, ok, err := c.Device(p.Peer)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("find link %s: %w", p.Peer, unix.ENODEV))
	}
	if p.SoftwareChecksums {
		if err := SoftwareChecksums(p.Peer); err != nil {
			return err
		}
	}
	if err := p.askOften(); err != nil {
		return err
	}
	return c.SetHost(peer, p.MAC, p.Addresses)
}

// askOften has the peer, in whose namespace the thread is, ask for a neighbour
// five times as often as others do, and give up after as long, three seconds:
// the answer, which the port's own machine knows, may be there any moment.
func (p Pair) askOften() error {
	asked := map[string]bool{}
	for _, a := range p.Addresses {
		family := "ipv4"
		if a.Addr().Is6() {
			family = "ipv6"
		}
		if asked[family] {
			continue
		}
		asked[family] = true
		for _, s := range []string{"retrans_time_ms=200", "mcast_solicit=15", "ucast_solicit=15"} {
			key, value, _ := strings.Cut(s, "=")
			if err := Sysctl("net/"+family+"/neigh/"+p.Peer+"/"+key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// HostAddresses are those that a device has that is given some: if there is one
// of IPv6, also the one by its MAC.
func HostAddresses(mac net.HardwareAddr, addrs []netip.Prefix) []netip.Prefix {
	out := slices.Clone(addrs)
	if slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		out = append(out, netip.PrefixFrom(Local(mac), 64))
	}
	return out
}

// SetHost gives a device of this thread's namespace its addresses, and sets it
// up. It has these, see HostAddresses, and no others.
func (c *Conn) SetHost(d Device, mac net.HardwareAddr, addrs []netip.Prefix) error {
	want := HostAddresses(mac, addrs)
	speaks := slices.ContainsFunc(want, func(a netip.Prefix) bool { return a.Addr().Is6() })
	if err := SpeakIPv6(d.Name, speaks); err != nil {
		return err
	}
	have, err := c.Addresses(d)
	if err != nil {
		return err
	}
	for _, a := range have {
		if slices.Contains(want, a) {
			continue
		}
		if err := c.RemoveAddress(d, a); err != nil {
			return err
		}
	}
	// In order: the first is what the device speaks from.
	for _, a := range want {
		if slices.Contains(have, a) {
			continue
		}
		if err := c.AddAddress(d, a); err != nil {
			return err
		}
	}
	return c.SetUp(d)
}
