// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"skep/net/balance"
	"skep/store/object"
)

// MeshState is what a node's part of the routing mesh is to do.
type MeshState struct {
	// Namespace is the path of the ingress network's namespace on this node. If
	// it is empty there is no mesh, and everything of it is removed.
	Namespace string
	// Slot is this node's, from 1 to 1023.
	Slot int
	// Subnets are the ingress network's. Those of IPv6 are left aside.
	Subnets []netip.Prefix
	// Routers are the slots of all nodes.
	Routers   []int
	Published []Published
}

// Published is a port that every node answers on.
type Published struct {
	Protocol network.IPProtocol
	Port     uint16
	Service  string // its ID
	// Source is [Preserve] or [SNAT].
	Source string
	// Backends serve it. If none is active, new connections are dropped.
	Backends []MeshBackend
}

// What a service sees of its clients.
const (
	Preserve = object.SourcePreserve // the client's address and port, the default
	SNAT     = object.SourceSNAT     // the address of a node's router
)

// MeshBackend is a task that serves a port.
type MeshBackend struct {
	Address netip.Addr // on the ingress network
	Target  uint16     // the port that it listens on
	// Index is the target's number among the task's ports, see [MemberPort].
	Index int
	// Draining ones keep the connections that they have, and get no others.
	Draining bool
}

// Conflict is a published port that this node does not answer on, or one that
// it answers on though it could not keep it from others.
type Conflict struct {
	Protocol network.IPProtocol
	Port     uint16
	Service  string // its ID
	Reason   string
}

func (p Published) listen() listen { return listen{proto: p.Protocol, port: p.Port} }

func (p Published) compare(o Published) int {
	return cmp.Or(p.listen().compare(o.listen()), cmp.Compare(p.Service, o.Service))
}

// ports is how the node's port is reserved for it.
func (p Published) ports() []object.Port {
	return []object.Port{{Protocol: p.Protocol, Host: p.Port, Container: p.Port}}
}

func (p Published) conflict(format string, args ...any) Conflict {
	return Conflict{p.Protocol, p.Port, p.Service, fmt.Sprintf(format, args...)}
}

// routing is a [MeshState] as it is carried out.
type routing struct {
	published []Published // in order, each port once
	conflicts []Conflict
	// fallbacks says by service why its clients' addresses are not kept, though
	// they should be.
	fallbacks map[string]string
	services  []balance.Service
	// snat is where connections lead that get the router's address.
	snat []target
}

// target is a task's port.
type target struct {
	address netip.Addr
	proto   uint8
	port    uint16
}

func (t target) compare(o target) int {
	return cmp.Or(t.address.Compare(o.address), cmp.Compare(t.proto, o.proto), cmp.Compare(t.port, o.port))
}

// route decides what to do for each published port. The address is the one that
// the node sends them to.
func (s MeshState) route(sandbox netip.Addr) routing {
	r := routing{fallbacks: map[string]string{}}
	all := slices.SortedFunc(slices.Values(s.Published), Published.compare)
	for i, p := range all {
		switch {
		case p.Protocol != network.TCP && p.Protocol != network.UDP:
			r.conflicts = append(r.conflicts, p.conflict("publish port %d/%s: only tcp and udp", p.Port, p.Protocol))
			continue
		case i > 0 && all[i-1].listen() == p.listen():
			r.conflicts = append(r.conflicts, p.conflict("port %d/%s is published by service %s", p.Port, p.Protocol, all[i-1].Service))
			continue
		}
		r.published = append(r.published, p)
		r.services = append(r.services, r.serve(p, sandbox, s.Slot))
	}
	slices.SortFunc(r.snat, target.compare)
	r.snat = slices.Compact(r.snat)
	return r
}

func (r *routing) serve(p Published, sandbox netip.Addr, slot int) balance.Service {
	out := balance.Service{Address: sandbox, Protocol: p.Protocol, Port: p.Port}
	for _, b := range p.Backends {
		port, ok := WirePort(b.Index, slot)
		if !ok && p.Source != SNAT {
			r.fallbacks[p.Service] = fmt.Sprintf("its tasks publish more than %d ports", indexes)
		}
		if !ok || p.Source == SNAT {
			port = b.Target
			r.snat = append(r.snat, target{b.Address, p.listen().number(), port})
		}
		out.Backends = append(out.Backends, balance.Backend{Address: b.Address, Port: port, Draining: b.Draining})
	}
	return out
}
