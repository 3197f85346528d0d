// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/nft"
)

// key is what a packet is recognised by.
type key struct {
	address netip.Addr // unspecified for any
	proto   uint8      // 0 for all
	port    uint16     // 0 for all
}

func (k key) compare(o key) int {
	return cmp.Or(k.address.Compare(o.address), cmp.Compare(k.port, o.port), cmp.Compare(k.proto, o.proto))
}

// String is as in tcp-10.0.0.5-80; what is any is left out.
func (k key) String() string {
	s := cmp.Or(string(protocol(k.proto)), "all")
	if !k.address.IsUnspecified() {
		s += "-" + k.address.String()
	} else if k.address.Is6() {
		s += "-v6"
	}
	if k.port != 0 {
		s += fmt.Sprintf("-%d", k.port)
	}
	return s
}

// protocol is the protocol's name, empty for all.
func protocol(proto uint8) network.IPProtocol {
	switch proto {
	case unix.IPPROTO_TCP:
		return network.TCP
	case unix.IPPROTO_UDP:
		return network.UDP
	case unix.IPPROTO_SCTP:
		return network.SCTP
	}
	return ""
}

// transports are the protocols that have ports.
func transports() []uint8 { return []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} }

// service is a checked [Service] of one protocol, or of everything.
//
// Invariant: live and draining are sorted, of the key's family, and have a port
// exactly if the key has one.
type service struct {
	key            key
	live, draining []nft.Target
}

// has reports whether the service may have connections to the backend.
func (s service) has(t nft.Target) bool {
	t = s.backend(t)
	return slices.Contains(s.live, t) || slices.Contains(s.draining, t)
}

// backend is how the service knows one that answers at a port.
func (s service) backend(t nft.Target) nft.Target {
	if s.key.port == 0 {
		t.Port = 0
	}
	return t
}

func (s service) equal(o service) bool {
	return s.key == o.key && slices.Equal(s.live, o.live) && slices.Equal(s.draining, o.draining)
}

// lacks reports whether a backend of o is none of s.
func (s service) lacks(o service) bool {
	missing := func(t nft.Target) bool { return !s.has(t) }
	return slices.ContainsFunc(o.live, missing) || slices.ContainsFunc(o.draining, missing)
}

// check is the services in order of their keys. Those that make no sense are
// left out and are the error.
func check(where Where, all []Service) ([]service, error) {
	var errs []error
	given := map[key]bool{}
	for _, s := range all {
		if k, err := keyOf(where, s); err == nil {
			if given[k] {
				errs = append(errs, fmt.Errorf("service %s is given twice", k))
			}
			given[k] = true
		}
	}
	out := map[key]service{}
	for _, s := range all {
		k, err := keyOf(where, s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		one, err := serviceOf(k, s.Backends)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, k := range spread(k) {
			// One that names its protocol goes before one for all.
			if k == one.key || !given[k] {
				out[k] = service{key: k, live: one.live, draining: one.draining}
			}
		}
	}
	sorted := make([]service, 0, len(out))
	for _, s := range out {
		sorted = append(sorted, s)
	}
	slices.SortFunc(sorted, func(x, y service) int { return x.key.compare(y.key) })
	return sorted, errors.Join(errs...)
}

func keyOf(where Where, s Service) (key, error) {
	k := key{address: s.Address.Unmap(), port: s.Port}
	switch s.Protocol {
	case network.TCP:
		k.proto = unix.IPPROTO_TCP
	case network.UDP:
		k.proto = unix.IPPROTO_UDP
	case network.SCTP:
		k.proto = unix.IPPROTO_SCTP
	case "":
	default:
		return key{}, fmt.Errorf("service %s: there is no protocol %q", s.Address, s.Protocol)
	}
	switch {
	case !k.address.IsValid():
		return key{}, errors.New("a service has no address")
	case k.address.IsUnspecified() && where != Forwarded:
		return key{}, fmt.Errorf("service %s: any address can be balanced only where connections arrive", k)
	case k.address.IsUnspecified() && k.port == 0:
		return key{}, fmt.Errorf("service %s: all ports of any address would be everything", k)
	}
	return k, nil
}

// spread is the keys that stand for a port of all protocols.
func spread(k key) []key {
	if k.proto != 0 || k.port == 0 {
		return []key{k}
	}
	var out []key
	for _, proto := range transports() {
		out = append(out, key{k.address, proto, k.port})
	}
	return out
}

func serviceOf(k key, backends []Backend) (service, error) {
	s := service{key: k}
	for _, b := range backends {
		t := nft.Target{Address: b.Address.Unmap(), Port: cmp.Or(b.Port, k.port)}
		switch {
		case t.Address.BitLen() != k.address.BitLen():
			return s, fmt.Errorf("service %s: backend %s is of another family", k, b.Address)
		case k.port == 0 && b.Port != 0:
			return s, fmt.Errorf("service %s has all ports, its backend %s one", k, t)
		case b.Draining:
			s.draining = append(s.draining, t)
		default:
			s.live = append(s.live, t)
		}
	}
	s.live, s.draining = inOrder(s.live), inOrder(s.draining)
	return s, nil
}

func inOrder(ts []nft.Target) []nft.Target {
	slices.SortFunc(ts, func(x, y nft.Target) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Port, y.Port))
	})
	return slices.Compact(ts)
}
