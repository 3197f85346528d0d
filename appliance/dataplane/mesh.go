package dataplane

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"skep/appliance/wire"
	"skep/net/ingress"
)

// planMesh is what this node serves of the published ports.
func (d *desired) planMesh(last *desired) {
	own := d.from.view.Hosts[d.from.self.node]
	for id, n := range d.networks {
		if !n.members.Ingress || own.Slot == 0 {
			continue
		}
		d.meshed = id
		if last != nil && last.meshed == id && last.networks[id] == n && last.from.sees(d.from) {
			d.mesh = last.mesh
			return
		}
		d.mesh = &ingress.MeshState{Slot: own.Slot, Routers: slots(d.from.view.Hosts), Published: n.published}
		for _, s := range n.members.Subnets {
			d.mesh.Subnets = append(d.mesh.Subnets, s.Prefix)
		}
		return
	}
}

// listen is a port of all nodes.
type listen struct {
	protocol network.IPProtocol
	port     uint16
}

// published are the ports of the mesh's services, by protocol and number.
//
// A port may be that of two services while the tasks of one that was removed
// come to their end: then it is the other's.
func published(m *wire.NetworkMembers, by map[string][]takes) []ingress.Published {
	ports := map[listen]ingress.Published{}
	for _, s := range byID(m.Services) {
		for _, p := range s.Published {
			l := listen{p.Protocol, p.Published}
			next := ingress.Published{
				Protocol: p.Protocol, Port: p.Published, Service: s.ID, Source: s.Source,
				Backends: meshBackends(l, by[s.ID]),
			}
			if had, ok := ports[l]; ok {
				next = together(had, next)
			}
			ports[l] = next
		}
	}
	list := make([]ingress.Published, 0, len(ports))
	for _, p := range ports {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b ingress.Published) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return list
}

func meshBackends(l listen, endpoints []takes) []ingress.MeshBackend {
	var list []ingress.MeshBackend
	for _, e := range endpoints {
		a, ok := sameFamily(netip.IPv4Unspecified(), e.Addresses)
		if !ok || e.part == absent {
			continue
		}
		for _, p := range e.Ports {
			if p.Protocol == l.protocol && p.Published == l.port {
				list = append(list, ingress.MeshBackend{Address: a, Target: p.Target, Index: p.Index, Draining: e.part == draining})
			}
		}
	}
	return list
}

// together is a port of two services: the one that somebody serves has it.
func together(a, b ingress.Published) ingress.Published {
	serves := func(p ingress.Published) bool {
		return slices.ContainsFunc(p.Backends, func(b ingress.MeshBackend) bool { return !b.Draining })
	}
	if serves(b) && !serves(a) {
		a, b = b, a
	}
	a.Backends = slices.Concat(a.Backends, b.Backends)
	return a
}
