// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out addresses and subnets.
//
// It is pure: it knows no kernel, no disk and no clock. Whoever uses it tells
// it the time and what is taken. Addresses are given serially, so one that was
// released comes back as late as possible, and never while it is in quarantine.
// It is not safe for concurrent use.
package ipam

import (
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Quarantine is how long a released address stays unused, so that what others
// still know of it (neighbours, connections) has ended when it comes back.
const Quarantine = time.Minute

// Pool is the addresses of one subnet.
type Pool struct {
	subnet      netip.Prefix
	first, last netip.Addr
	// next is where the search for the next address starts.
	// Invariant: first <= next <= last.
	next netip.Addr
	used map[netip.Addr]bool
	// resting holds released addresses and when they may be used again.
	resting map[netip.Addr]time.Time
}

// New makes a pool of an IPv4 subnet's host addresses. The reserved ones (the
// gateway) are never handed out.
func New(subnet netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet.Bits() > 30 {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "subnet %s: not an IPv4 subnet of at least four addresses", subnet)
	}
	subnet = subnet.Masked()
	p := &Pool{
		subnet:  subnet,
		first:   subnet.Addr().Next(),
		last:    Last(subnet).Prev(),
		used:    map[netip.Addr]bool{},
		resting: map[netip.Addr]time.Time{},
	}
	p.next = p.first
	for _, a := range reserved {
		if !p.holds(a) {
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "address %s: not a host of %s", a, subnet)
		}
		p.used[a] = true
	}
	return p, nil
}

// Take hands out the next free address.
func (p *Pool) Take(now time.Time) (netip.Addr, error) {
	for a := p.next; ; {
		after := p.after(a)
		if !p.used[a] && !p.rests(a, now) {
			p.used[a] = true
			p.next = after
			return a, nil
		}
		if a = after; a == p.next {
			return netip.Addr{}, object.Errorf(errdefs.ErrResourceExhausted, "subnet %s: no address is free", p.subnet)
		}
	}
}

// Claim marks an address as handed out, because it was before a restart.
func (p *Pool) Claim(a netip.Addr) error {
	switch {
	case !p.holds(a):
		return object.Errorf(errdefs.ErrInvalidArgument, "address %s: not a host of %s", a, p.subnet)
	case p.used[a]:
		return object.Errorf(errdefs.ErrAlreadyExists, "address %s: already in use", a)
	}
	delete(p.resting, a)
	p.used[a] = true
	return nil
}

// Release takes an address back. It rests before it is handed out again.
func (p *Pool) Release(a netip.Addr, now time.Time) {
	if !p.used[a] {
		return
	}
	delete(p.used, a)
	p.resting[a] = now.Add(Quarantine)
}

// Next is where the pool goes on; Resume sets it after a restart, so that
// addresses in quarantine at that time are not handed out first.
func (p *Pool) Next() netip.Addr { return p.next }

// Resume continues behind an earlier pool of the same subnet; an address that
// is no host of it is ignored.
func (p *Pool) Resume(next netip.Addr) {
	if p.holds(next) {
		p.next = next
	}
}

func (p *Pool) holds(a netip.Addr) bool {
	return a.Is4() && !a.Less(p.first) && !p.last.Less(a)
}

func (p *Pool) after(a netip.Addr) netip.Addr {
	if a == p.last {
		return p.first
	}
	return a.Next()
}

func (p *Pool) rests(a netip.Addr, now time.Time) bool {
	until, ok := p.resting[a]
	if ok && !now.Before(until) {
		delete(p.resting, a)
		return false
	}
	return ok
}
