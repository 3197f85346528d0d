// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// How long an answer may be kept, in seconds. A virtual address stays with its
// service; who is behind a name without one changes with every update.
const (
	ttlStable  = 60
	ttlMembers = 5
)

// tasksPrefix, before the name of a service, asks for its endpoints.
const tasksPrefix = "tasks."

// records are the addresses of a name.
type records struct {
	four, six []netip.Addr // sorted, without repetition
	ttl       uint32
	last      *netip.Addr // the first of those added last, while the index is made
}

func (r *records) add(addrs []netip.Addr, ttl uint32) {
	if r.ttl == 0 || ttl < r.ttl {
		r.ttl = ttl
	}
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4():
			r.four = append(r.four, a)
		case a.Is6():
			r.six = append(r.six, a.WithZone(""))
		}
	}
}

func (r *records) finish() {
	slices.SortFunc(r.four, netip.Addr.Compare)
	slices.SortFunc(r.six, netip.Addr.Compare)
	r.four, r.six = slices.Compact(r.four), slices.Compact(r.six)
}

// holder is whose an address is.
type holder struct {
	name string
	ttl  uint32
}

// index is a network, arranged for questions. It does not change.
type index struct {
	suffix  string // "." and the network's name in lower case; empty if it has none
	names   map[string]*records
	holders map[netip.Addr]holder
	subnets []netip.Prefix
}

// newIndex arranges a network. A name of several things has the addresses of
// all of them.
func newIndex(n *Network) *index {
	x := &index{names: map[string]*records{}, holders: map[netip.Addr]holder{}, subnets: n.Subnets}
	if n.Name != "" {
		x.suffix = "." + canonical(n.Name)
	}
	services := make(map[string]*Service, len(n.Services))
	for i := range n.Services {
		s := &n.Services[i]
		services[s.ID] = s
		x.service(s)
	}
	for i := range n.Endpoints {
		e := &n.Endpoints[i]
		x.endpoint(e, services[e.Service])
	}
	for _, r := range x.names {
		r.finish()
	}
	return x
}

// service makes a service's names known, whether or not it has endpoints.
func (x *index) service(s *Service) {
	if s.Name == "" {
		return
	}
	x.add(s.Name, s.VIPs, ttlOf(s))
	x.add(tasksPrefix+s.Name, nil, ttlMembers)
	x.hold(s.VIPs, s.Name, ttlStable)
}

func ttlOf(s *Service) uint32 {
	if s != nil && len(s.VIPs) > 0 {
		return ttlStable
	}
	return ttlMembers
}

func (x *index) endpoint(e *Endpoint, s *Service) {
	for _, name := range e.Names {
		x.add(name, e.Addresses, ttlMembers)
	}
	if len(e.Names) > 0 {
		x.hold(e.Addresses, e.Names[0], ttlMembers)
	}
	if !e.Active {
		return
	}
	led := e.Addresses // where others are led to who ask for the service
	if s != nil {
		if len(s.VIPs) > 0 {
			led = s.VIPs
		}
		if s.Name != "" {
			x.add(tasksPrefix+s.Name, e.Addresses, ttlMembers)
			if len(s.VIPs) == 0 {
				x.add(s.Name, e.Addresses, ttlMembers)
			}
		}
		x.aliases(s.Aliases, e, led, ttlOf(s))
	}
	x.aliases(e.Aliases, e, led, ttlOf(s))
}

func (x *index) aliases(aliases []string, e *Endpoint, led []netip.Addr, ttl uint32) {
	for _, alias := range aliases {
		x.add(alias, led, ttl)
		x.add(tasksPrefix+alias, e.Addresses, ttlMembers)
	}
}

func (x *index) add(name string, addrs []netip.Addr, ttl uint32) {
	name = canonical(name)
	if name == "" {
		return
	}
	r := x.names[name]
	if r == nil {
		r = &records{}
		x.names[name] = r
	}
	// A service with thousands of endpoints leads to the same virtual address
	// for each of them.
	if len(addrs) > 0 {
		if &addrs[0] == r.last {
			return
		}
		r.last = &addrs[0]
	}
	r.add(addrs, ttl)
}

// hold notes whose addresses these are; the first who says so has them.
func (x *index) hold(addrs []netip.Addr, name string, ttl uint32) {
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if _, taken := x.holders[a]; !taken {
			x.holders[a] = holder{strings.TrimSuffix(name, ".") + x.suffix, ttl}
		}
	}
}

// find is what the network has under a name that is in lower case and has no dot at its end.
func (x *index) find(name []byte) *records {
	if r := x.names[string(name)]; r != nil {
		return r
	}
	if short, ok := x.within(name); ok {
		return x.names[string(short)]
	}
	return nil
}

// within cuts the network's name off a name that ends with it.
func (x *index) within(name []byte) ([]byte, bool) {
	if x.suffix == "" || len(name) <= len(x.suffix) {
		return nil, false
	}
	at := len(name) - len(x.suffix)
	return name[:at], string(name[at:]) == x.suffix
}

func (x *index) contains(a netip.Addr) bool {
	return slices.ContainsFunc(x.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// canonical is a name as maps have it.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
