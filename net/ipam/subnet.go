// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net"
	"net/netip"
	"slices"

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
	sorted := slices.DeleteFunc(slices.Clone(taken), func(p netip.Prefix) bool { return !p.IsValid() })
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	for _, r := range ranges {
		base := r.Base.Addr()
		if !r.Base.IsValid() || base.Is4In6() || r.Bits < r.Base.Bits() || r.Bits > base.BitLen()-2 {
			return netip.Prefix{}, object.Errorf(errdefs.ErrInvalidArgument, "address pool %s, subnets of /%d: not a division of a block", r.Base, r.Bits)
		}
		if s := firstFree(r, sorted); s.IsValid() {
			return s, nil
		}
	}
	return netip.Prefix{}, object.Errorf(errdefs.ErrResourceExhausted, "address pools: no subnet is free")
}

// firstFree looks at one range. taken is in the order of its first addresses,
// so that what does not reach the candidate leaves it to those before.
func firstFree(r Range, taken []netip.Prefix) netip.Prefix {
	s := netip.PrefixFrom(r.Base.Masked().Addr(), r.Bits)
	for _, t := range taken {
		if !t.Overlaps(s) {
			if s.Addr().Less(t.Addr()) {
				break
			}
			continue
		}
		// Behind the larger of the two: a large block is left at once.
		if t.Bits() > s.Bits() {
			t = s
		}
		if s = netip.PrefixFrom(Last(t).Next(), r.Bits); !s.IsValid() || !r.Base.Contains(s.Addr()) {
			return netip.Prefix{}
		}
	}
	return s
}

// Last is a subnet's last address: IPv4's broadcast address.
func Last(s netip.Prefix) netip.Addr {
	b := s.Addr().AsSlice()
	for i := range b {
		if host := 8*(i+1) - s.Bits(); host > 0 {
			b[i] |= byte(1<<min(host, 8) - 1)
		}
	}
	last, _ := netip.AddrFromSlice(b) // of the length that it had
	return last
}

// MAC is the hardware address that belongs to an IPv4 address: 02:42 and the
// address. So a neighbour entry stays true when an address moves.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}
