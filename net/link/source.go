// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SourceRoute is the way of what is sent from one address of a namespace, where
// other addresses have other ways.
type SourceRoute struct {
	Interface string
	Address   netip.Addr
	Subnet    netip.Prefix
	Gateway   netip.Addr
	// GatewayMAC is where the gateway is; nobody is asked.
	GatewayMAC net.HardwareAddr
	// Table holds the routes, a rule of this Priority leads there.
	Table, Priority int
}

// EnsureSourceRoute makes what is missing of the route in this thread's
// namespace. It reports whether something was.
func EnsureSourceRoute(s SourceRoute) (changed bool, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	c := &Conn{h: h}
	l, err := h.LinkByName(s.Interface)
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", s.Interface, err)
	}
	for _, step := range []func(netlink.Link, SourceRoute) (bool, error){c.ensureNeighbour, c.ensureRoutes, c.ensureRule} {
		did, err := step(l, s)
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (c *Conn) ensureNeighbour(l netlink.Link, s SourceRoute) (changed bool, err error) {
	have, err := c.h.NeighList(l.Attrs().Index, unix.AF_INET)
	if err != nil {
		return false, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range have {
		if n.IP.Equal(s.Gateway.AsSlice()) && n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == s.GatewayMAC.String() {
			return false, nil
		}
	}
	err = c.h.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, IP: s.Gateway.AsSlice(), HardwareAddr: s.GatewayMAC, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		return true, fmt.Errorf("set neighbour %s: %w", s.Gateway, err)
	}
	return true, nil
}

// ensureRoutes makes the subnet's route, too: those of the main table are not
// looked at.
func (c *Conn) ensureRoutes(l netlink.Link, s SourceRoute) (changed bool, err error) {
	near := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(s.Subnet.Masked()), Scope: netlink.SCOPE_LINK, Table: s.Table}
	if changed, err = c.ensureRoute(near); err != nil {
		return changed, err
	}
	far, err := c.ensureRoute(netlink.Route{LinkIndex: l.Attrs().Index, Gw: s.Gateway.AsSlice(), Table: s.Table})
	return changed || far, err
}

func (c *Conn) ensureRule(_ netlink.Link, s SourceRoute) (changed bool, err error) {
	have, err := c.h.RuleList(unix.AF_INET)
	if err != nil {
		return false, fmt.Errorf("list rules: %w", err)
	}
	want := netip.PrefixFrom(s.Address, s.Address.BitLen())
	found := false
	for _, r := range have {
		if r.Table != s.Table || r.Priority != s.Priority {
			continue
		}
		if p, ok := prefix(r.Src); ok && p == want && !found {
			found = true
			continue
		}
		// Of an address that the namespace had before.
		if err := c.h.RuleDel(&r); err != nil {
			return true, fmt.Errorf("remove rule: %w", err)
		}
		changed = true
	}
	if found {
		return changed, nil
	}
	r := netlink.NewRule()
	r.Family, r.Src, r.Table, r.Priority = unix.AF_INET, ipNet(want), s.Table, s.Priority
	if err := c.h.RuleAdd(r); err != nil {
		return true, fmt.Errorf("add rule from %s: %w", s.Address, err)
	}
	return true, nil
}
