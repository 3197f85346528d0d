// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Forget ends what the kernel remembers of connections from and to these
// addresses: the next packet of each is treated as a new connection's.
func (c *Conn) Forget(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	of := map[netip.Addr]bool{}
	for _, a := range addrs {
		of[a] = true
	}
	return c.forget(flow{of: of})
}

// ForgetPort does so for UDP that was sent to a port of the node while nobody
// had it: such packets would else go on to nobody for ever.
func (c *Conn) ForgetPort(port uint16) error {
	return c.forget(flow{port: port})
}

func (c *Conn) forget(f netlink.CustomConntrackFilter) error {
	err := complete(func() error {
		_, err := c.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}

// complete lists again when the list may be incomplete, because what the kernel
// lists was changing.
func complete(list func() error) (err error) {
	for range 3 {
		if err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

// Flow is a connection that the kernel keeps track of.
type Flow struct {
	Protocol uint8
	// Destination is what was asked for, Answers who answers: the same, if the
	// connection was not translated.
	Destination, Answers netip.AddrPort
}

// ForgetFlows does as Forget for the connections, of IPv4 and IPv6, that match;
// it leaves those of TCP that both sides have closed.
func (c *Conn) ForgetFlows(match func(Flow) bool) error {
	return errors.Join(c.ForgetFlowsOf(false, match), c.ForgetFlowsOf(true, match))
}

// ForgetFlowsOf does so for those of one family.
func (c *Conn) ForgetFlowsOf(v6 bool, match func(Flow) bool) error {
	family := netlink.InetFamily(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	err := complete(func() error {
		_, err := c.h.ConntrackDeleteFilters(netlink.ConntrackTable, family, matching(match))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}

type matching func(Flow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m matching) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	return !over(c) && m(flowOf(c))
}

// over reports whether both sides have closed a connection. There is nothing to
// forget then: the next one of the same ports is treated as new. But that one has
// the place in memory, and so the ID, of the one that was listed, and would be
// forgotten in its stead.
func over(c *netlink.ConntrackFlow) bool {
	tcp, ok := c.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && tcp.State == nl.TCP_CONNTRACK_TIME_WAIT
}

func flowOf(c *netlink.ConntrackFlow) Flow {
	return Flow{
		Protocol:    c.Forward.Protocol,
		Destination: addrPort(c.Forward.DstIP, c.Forward.DstPort),
		Answers:     addrPort(c.Reverse.SrcIP, c.Reverse.SrcPort),
	}
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// flow matches connections of addresses, or to a UDP port.
type flow struct {
	of   map[netip.Addr]bool
	port uint16
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flow) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if f.of == nil {
		// Untranslated: what answers is what was asked.
		return c.Forward.Protocol == unix.IPPROTO_UDP && c.Forward.DstPort == f.port && c.Forward.DstIP.Equal(c.Reverse.SrcIP)
	}
	for _, ip := range []net.IP{c.Forward.SrcIP, c.Forward.DstIP, c.Reverse.SrcIP, c.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f.of[a.Unmap()] {
			return true
		}
	}
	return false
}
