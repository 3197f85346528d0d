// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
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

func (c *Conn) forget(f flow) error {
	// What the kernel lists while it changes may be incomplete: then again.
	var err error
	for range 3 {
		if _, err = c.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
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
