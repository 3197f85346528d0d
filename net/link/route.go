// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultMTU is used where no default route says better.
const defaultMTU = 1500

// Taken lists the IPv4 subnets that the machine has an address in or a route
// to, default routes and those by the device except left out.
func (c *Conn) Taken(except string) ([]netip.Prefix, error) {
	links, err := c.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	skip := -1
	for _, l := range links {
		if l.Attrs().Name == except {
			skip = l.Attrs().Index
		}
	}
	var taken []netip.Prefix
	addrs, err := c.h.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok && a.LinkIndex != skip {
			taken = append(taken, p.Masked())
		}
	}
	routes, err := c.h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefix(r.Dst); ok && p.Bits() > 0 && r.LinkIndex != skip {
			taken = append(taken, p.Masked())
		}
	}
	return taken, nil
}

// MTU is that of the device of the default route.
func (c *Conn) MTU() (int, error) {
	routes, err := c.h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefix(r.Dst); r.Dst != nil && (!ok || p.Bits() > 0) {
			continue
		}
		l, err := c.h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("find the default route's link: %w", err)
		}
		return l.Attrs().MTU, nil
	}
	return defaultMTU, nil
}

// Sysctl sets a value below /proc/sys, if it is not set. It is that of the
// calling thread's namespace.
func Sysctl(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); !ok || size != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
