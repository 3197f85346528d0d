// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Span is the addresses from First to Last, both of them included, of one family.
type Span struct{ First, Last netip.Addr }

// Hosts are the addresses of a subnet that hosts may have, limited to those in
// within, if that is valid: all but the first, which stands for the subnet, and
// IPv4's last, which is for broadcasts.
func Hosts(subnet, within netip.Prefix) (Span, error) {
	if !subnet.IsValid() || subnet.Addr().Is4In6() || subnet.Bits() > subnet.Addr().BitLen()-2 {
		return Span{}, object.Errorf(errdefs.ErrInvalidArgument, "subnet %s: not a subnet of at least four addresses", subnet)
	}
	subnet = subnet.Masked()
	s := Span{First: subnet.Addr().Next(), Last: Last(subnet)}
	if subnet.Addr().Is4() {
		s.Last = s.Last.Prev()
	}
	if !within.IsValid() {
		return s, nil
	}
	within = within.Masked()
	if within.Bits() < subnet.Bits() || !subnet.Contains(within.Addr()) {
		return Span{}, object.Errorf(errdefs.ErrInvalidArgument, "range %s: not in subnet %s", within, subnet)
	}
	if s.First.Less(within.Addr()) {
		s.First = within.Addr()
	}
	if last := Last(within); last.Less(s.Last) {
		s.Last = last
	}
	if s.Last.Less(s.First) {
		return Span{}, object.Errorf(errdefs.ErrInvalidArgument, "range %s: holds no host of subnet %s", within, subnet)
	}
	return s, nil
}

// Contains reports whether an address is one of the span's.
func (s Span) Contains(a netip.Addr) bool {
	return a.BitLen() == s.First.BitLen() && !a.Less(s.First) && !s.Last.Less(a)
}

// Len is how many addresses there are, or the largest number if it is too small.
func (s Span) Len() uint64 {
	first, last := s.First.As16(), s.Last.As16()
	high := binary.BigEndian.Uint64(last[:]) - binary.BigEndian.Uint64(first[:])
	low, borrow := binary.BigEndian.Uint64(last[8:])-binary.BigEndian.Uint64(first[8:]), uint64(0)
	if binary.BigEndian.Uint64(last[8:]) < binary.BigEndian.Uint64(first[8:]) {
		borrow = 1
	}
	if high-borrow > 0 || low == math.MaxUint64 {
		return math.MaxUint64
	}
	return low + 1
}
