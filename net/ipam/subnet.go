// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Range is a block of addresses that is cut into subnets of one size.
type Range struct {
	Base netip.Prefix
	Bits int // of the subnets
}

// NodeRanges are the ranges of a node's own networks, those that Docker uses
// too, cut into subnets of 4,094 hosts.
func NodeRanges() []Range {
	return []Range{
		{netip.MustParsePrefix("172.17.0.0/16"), 20},
		{netip.MustParsePrefix("172.18.0.0/15"), 20},
		{netip.MustParsePrefix("172.20.0.0/14"), 20},
		{netip.MustParsePrefix("172.24.0.0/13"), 20},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
	}
}

// FirstFree is the first subnet of the ranges that overlaps nothing taken.
func FirstFree(ranges []Range, taken []netip.Prefix) (netip.Prefix, error) {
	for _, r := range ranges {
		if !r.Base.IsValid() || !r.Base.Addr().Is4() || r.Bits < r.Base.Bits() || r.Bits > 30 {
			return netip.Prefix{}, object.Errorf(errdefs.ErrInvalidArgument, "address pool %s, subnets of /%d: not a division of an IPv4 block", r.Base, r.Bits)
		}
		for s := netip.PrefixFrom(r.Base.Masked().Addr(), r.Bits); s.IsValid() && r.Base.Contains(s.Addr()); {
			blocker, blocked := overlap(s, taken)
			if !blocked {
				return s, nil
			}
			// Behind the larger of the two: a large block is left at once.
			if blocker.Bits() > s.Bits() {
				blocker = s
			}
			s = netip.PrefixFrom(Last(blocker).Next(), r.Bits)
		}
	}
	return netip.Prefix{}, object.Errorf(errdefs.ErrResourceExhausted, "address pools: no subnet is free")
}

func overlap(s netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	for _, t := range taken {
		if t.IsValid() && t.Overlaps(s) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// Last is an IPv4 subnet's last address, its broadcast address.
func Last(s netip.Prefix) netip.Addr {
	b := s.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-s.Bits())-1)
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// MAC is the hardware address that belongs to an IPv4 address: 02:42 and the
// address. So a neighbour entry stays true when an address moves.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}
