package allocator

import (
	"fmt"
	"net/netip"
	"strings"

	"skep/net/ipam"
	"skep/store/object"
)

// site is a network as addresses are taken from it.
type site struct {
	*object.Network
	book     *ipam.Book
	families []*family // one or two: those that the network has
}

// family is the part of a network of one IP version.
type family struct {
	subnets []netip.Prefix
	hosts   []ipam.Span // of the subnets
	spans   []ipam.Span // those that are given: the hosts, or the ranges among them
	full    bool        // as was found in this round
}

// site is a network to take addresses from, or why there is none.
func (r *round) site(id string) (s *site, why string) {
	if known, ok := r.sites[id]; ok {
		return known, ""
	}
	n := r.networks[id]
	if n == nil {
		n, _ = r.snap.Networks.Get(id)
	}
	switch {
	case n == nil || n.PendingDelete:
		return nil, fmt.Sprintf("network %s not found", id)
	case n.VNI == 0 && n.Problem != "":
		return nil, fmt.Sprintf("network %s: %s", n.Spec.Name, n.Problem)
	case n.VNI == 0 || n.IPAMOptions == nil:
		return nil, fmt.Sprintf("network %s has no subnet yet", n.Spec.Name)
	}
	s = &site{Network: n, book: r.ledger.book(id)}
	for _, v6 := range []bool{false, true} {
		if f := newFamily(n, v6); len(f.subnets) > 0 {
			s.families = append(s.families, f)
		}
	}
	r.sites[id] = s
	return s, ""
}

func newFamily(n *object.Network, v6 bool) *family {
	f := &family{}
	for _, c := range n.IPAMOptions.Configs {
		if c.Subnet.Addr().Is6() != v6 {
			continue
		}
		f.subnets = append(f.subnets, c.Subnet)
		hosts, err := ipam.Hosts(c.Subnet, netip.Prefix{})
		given, rangeErr := ipam.Hosts(c.Subnet, c.Range)
		if err == nil && rangeErr == nil { // as was made sure of when it was allocated
			f.hosts, f.spans = append(f.hosts, hosts), append(f.spans, given)
		}
	}
	return f
}

// has reports whether an address lies in one of the family's subnets.
func (f *family) has(a netip.Addr) bool { return f.prefix(a).IsValid() }

// prefix is an address with the length of the subnet that it is in.
func (f *family) prefix(a netip.Addr) netip.Prefix {
	for _, s := range f.subnets {
		if s.Contains(a) {
			return netip.PrefixFrom(a, s.Bits())
		}
	}
	return netip.Prefix{}
}

// take hands out one address of a family.
func (r *round) take(s *site, f *family) (netip.Prefix, string) {
	if !f.full {
		a, err := s.book.Take(f.spans, r.now)
		if err == nil {
			r.ledger.gave(claim{s.ID, a})
			return f.prefix(a), ""
		}
		f.full = true
		r.wakeFor(s, f)
	}
	return netip.Prefix{}, s.full(f)
}

// wakeFor looks again when an address ends its rest.
func (r *round) wakeFor(s *site, f *family) {
	if at := s.book.Wake(f.spans); !at.IsZero() && (r.due.IsZero() || at.Before(r.due)) {
		r.due = at
	}
}

// takeAll hands out one address of each family, or says which has none left.
func (r *round) takeAll(s *site) (out []netip.Prefix, why string) {
	for _, f := range s.families {
		p, why := r.take(s, f)
		if why != "" {
			return nil, why
		}
		out = append(out, p)
	}
	return out, ""
}

func (s *site) full(f *family) string {
	subnets := make([]string, len(f.subnets))
	for i, p := range f.subnets {
		subnets[i] = p.String()
	}
	return fmt.Sprintf("no address is free in network %s (%s)", s.Spec.Name, strings.Join(subnets, ", "))
}
