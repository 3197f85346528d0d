// SPDX-License-Identifier: Apache-2.0

// Package ingress leads the ports of the node to its endpoints.
//
// [Plan] is pure: it turns the endpoints of a node into the table of the
// packet filter that serves them. [Ports] keeps the node's ports from other
// programs while they are published. What balances over several nodes is not here.
package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/nft"
	"skep/store/object"
)

// Local is the node's own network, to which the ports lead.
type Local struct {
	Table  string
	Bridge string
	Subnet netip.Prefix
}

// Endpoint is a container on the node's network.
type Endpoint struct {
	Address netip.Addr
	Ports   []object.Port
}

// The chains and maps of the table that are always there.
const (
	byAddress = "bound"
	byPort    = "ports"
	published = "published"
)

// Plan is the table that leads the endpoints' ports to them. It is the same
// for the same endpoints in any order. No two endpoints have the same port.
func Plan(l Local, endpoints []Endpoint) nft.Table {
	t := frame(l)
	bound := &t.Maps[0].Elements
	ports := &t.Maps[1].Elements
	for _, s := range served(endpoints) {
		chain := nft.Chain{Name: s.listen.chain(), Rules: []nft.Rule{nft.Rule{}.Translate([]nft.Target{s.target})}}
		t.Chains = append(t.Chains, chain)
		e := nft.Element{Key: s.listen.key(), Chain: chain.Name}
		if s.listen.address.IsValid() {
			*bound = append(*bound, e)
		} else {
			*ports = append(*ports, e)
		}
	}
	return t
}

// frame is the table without any port.
func frame(l Local) nft.Table {
	var r nft.Rule
	return nft.Table{
		Name: l.Table,
		Maps: []nft.Map{{Name: byAddress, Width: 12}, {Name: byPort, Width: 8}},
		Chains: []nft.Chain{
			// The bridge routes 127.0.0.0/8 for the node's own connections; no
			// container may use that to reach what listens there, or pose as it.
			base("guard", "filter", nft.Prerouting, -300,
				r.IfName(l.Bridge).To(loopback()).Drop(),
				r.IfName(l.Bridge).From(loopback()).Drop()),
			base("prerouting", "nat", nft.Prerouting, -100, r.ToLocal().Jump(published)),
			base("output", "nat", nft.Output, -100, r.ToLocal().Jump(published)),
			// What was not published is not reachable from outside by a route either.
			base("forward", "filter", nft.Forward, 0,
				r.OutName(l.Bridge).Established().Accept(),
				r.OutName(l.Bridge).Translated().Accept(),
				r.OutName(l.Bridge).NotIfName(l.Bridge).Drop()),
			base("postrouting", "nat", nft.Postrouting, 100,
				r.OutName(l.Bridge).From(loopback()).Masquerade(),
				// From an endpoint by the node to an endpoint: the answer must come back by the node.
				r.OutName(l.Bridge).From(l.Subnet).Translated().Masquerade(),
				r.NotOutName(l.Bridge).From(l.Subnet).Masquerade()),
			{Name: published, Rules: []nft.Rule{r.ByAddressAndPort(byAddress), r.ByPort(byPort)}},
		},
	}
}

func base(name, kind string, at nft.Point, priority int32, rules ...nft.Rule) nft.Chain {
	return nft.Chain{Name: name, Hook: &nft.Hook{Type: kind, Point: at, Priority: priority}, Rules: rules}
}

func loopback() netip.Prefix { return netip.MustParsePrefix("127.0.0.0/8") }

// listen is one port of the node.
type listen struct {
	address netip.Addr // not valid for all addresses
	proto   network.IPProtocol
	port    uint16
}

func listenOf(p object.Port) listen {
	a, err := netip.ParseAddr(p.HostIP)
	if err != nil || a.IsUnspecified() {
		a = netip.Addr{}
	}
	return listen{a.Unmap(), p.Protocol, p.Host}
}

func (l listen) key() string {
	return nft.PortKey(l.address, l.number(), l.port)
}

// number is the protocol's.
func (l listen) number() uint8 {
	if l.proto == network.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// listenOfKey is the one of a key without an address.
func listenOfKey(key string) listen {
	proto, port := nft.UnpackPortKey(key)
	if proto == unix.IPPROTO_UDP {
		return listen{proto: network.UDP, port: port}
	}
	return listen{proto: network.TCP, port: port}
}

func (l listen) chain() string {
	if l.address.IsValid() {
		return fmt.Sprintf("%s-%s-%d", l.proto, l.address, l.port)
	}
	return fmt.Sprintf("%s-%d", l.proto, l.port)
}

func (l listen) compare(o listen) int {
	return cmp.Or(l.address.Compare(o.address), cmp.Compare(l.port, o.port), cmp.Compare(l.proto, o.proto))
}

// serving is a port of the node and who serves it.
type serving struct {
	listen listen
	target nft.Target
}

// served are the endpoints' ports in the order of the node's.
func served(endpoints []Endpoint) []serving {
	var out []serving
	for _, e := range endpoints {
		for _, p := range e.Ports {
			out = append(out, serving{listenOf(p), nft.Target{Address: e.Address, Port: p.Container}})
		}
	}
	slices.SortFunc(out, func(x, y serving) int {
		return cmp.Or(x.listen.compare(y.listen), x.target.Address.Compare(y.target.Address), cmp.Compare(x.target.Port, y.target.Port))
	})
	return slices.CompactFunc(out, func(x, y serving) bool { return x.listen == y.listen })
}
