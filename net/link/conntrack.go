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

// Forget ends what the kernel remembers of connections from and to an
// address: the next packet of each is treated as a new connection's.
func (c *Conn) Forget(a netip.Addr) error {
	return c.forget(flow{addr: a.AsSlice()})
}

// ForgetPort does so for UDP that was sent to a port of the node while nobody
// had it: such packets would else go on to nobody for ever.
func (c *Conn) ForgetPort(port uint16) error {
	return c.forget(flow{port: port})
}

func (c *Conn) forget(f flow) error {
	_, err := c.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}

// flow matches connections of an address, or to a UDP port.
type flow struct {
	addr net.IP
	port uint16
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flow) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if f.addr != nil {
		return f.addr.Equal(c.Forward.SrcIP) || f.addr.Equal(c.Forward.DstIP) ||
			f.addr.Equal(c.Reverse.SrcIP) || f.addr.Equal(c.Reverse.DstIP)
	}
	// Untranslated: what answers is what was asked.
	return c.Forward.Protocol == unix.IPPROTO_UDP && c.Forward.DstPort == f.port && c.Forward.DstIP.Equal(c.Reverse.SrcIP)
}
