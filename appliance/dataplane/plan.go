package dataplane

import (
	"maps"
	"slices"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/dns"
	"skep/net/ingress"
	"skep/net/overlay"
)

// input is all that a plan is made from. It is not changed once it is used.
type input struct {
	self self
	// view is what the managers say; nil if the node is in no swarm.
	view *wire.NetworkView
	// suspended are nodes that seem to be dead.
	suspended map[string]bool
	// leaving are tasks of this node that take less part than the managers say.
	leaving map[string]part
	// local are the networks that containers of this node are on, or wait for.
	local map[string]bool
	// tunnels are the keys, nil until they are known. protected: the kernel
	// encrypts with them; if not, only the encrypted networks that are made can be had.
	tunnels   *wire.Tunnels
	protected bool
	made      map[string]bool
}

// self is this node.
type self struct {
	node string
	mtu  int // of the device that the data path's address is on
	// noESP is why the kernel cannot encrypt; empty if it can.
	noESP string
}

// desired is what this node's part of the swarm's networks is to be. It and
// all that it leads to is not changed: what is the same in two of them is the
// same pointer, so that whoever follows sees at once what to do.
type desired struct {
	from     input
	networks map[string]*place // by ID
	// mesh is nil if this node serves no published ports. Its Namespace is to be
	// filled in.
	mesh *ingress.MeshState
	// meshed is the ID of the mesh's network, if there is a mesh.
	meshed string
}

// place is what one network of the swarm comes to on this node.
type place struct {
	members *wire.NetworkMembers
	overlay *overlay.Network
	// services are the addresses of services, for containers on the network.
	services []balance.Service
	// names are nil for the routing mesh's, where nobody is called by a name.
	names *dns.Network
	// published are those of the mesh.
	published []ingress.Published
}

// plan is what is to be. The last one is only used for what it shares with this one.
func plan(last *desired, in input) *desired {
	d := &desired{from: in, networks: map[string]*place{}}
	if in.view == nil {
		return d
	}
	for id, m := range in.view.Networks {
		if !in.serves(m) {
			continue
		}
		if old := last.place(id); old != nil && old.members == m && last.from.sees(in) && !last.from.lessens(in, m) {
			d.networks[id] = old
			continue
		}
		d.networks[id] = in.place(m)
	}
	// A network that is not to be here any more stays until its last container has gone.
	for id := range in.local {
		if old := last.place(id); old != nil && d.networks[id] == nil {
			d.networks[id] = old
		}
	}
	d.planMesh(last)
	return d
}

func (d *desired) place(id string) *place {
	if d == nil {
		return nil
	}
	return d.networks[id]
}

// version is that of what the managers said.
func (d *desired) version() uint64 {
	if d == nil || d.from.view == nil {
		return 0
	}
	return d.from.view.Version
}

// overlays are the networks' frames, in the order of their IDs.
func (d *desired) overlays() []*overlay.Network {
	if d == nil {
		return nil
	}
	list := make([]*overlay.Network, 0, len(d.networks))
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		list = append(list, d.networks[id].overlay)
	}
	return list
}

// names are what the resolver is to answer.
func (d *desired) names() dns.State {
	s := dns.State{Version: d.version(), Networks: map[string]*dns.Network{}}
	for id, n := range d.networks {
		if n.names != nil {
			s.Networks[id] = n.names
		}
	}
	return s
}

// serves reports whether the node is to have a network. That of the routing
// mesh is made where it is of use; one that is to be encrypted never in clear.
func (in *input) serves(m *wire.NetworkMembers) bool {
	switch {
	case !in.view.Hosts[in.self.node].Address.IsValid():
		return false
	case m.Encrypted && (in.self.noESP != "" || !in.protected && !in.made[m.ID]):
		return false
	case m.Ingress:
		return in.local[m.ID] || publishes(m)
	}
	return true
}

func publishes(m *wire.NetworkMembers) bool {
	for _, s := range m.Services {
		if len(s.Published) > 0 {
			return true
		}
	}
	return false
}

// sees reports whether what both are made from is the same but for the networks.
func (in *input) sees(o input) bool {
	return in.view != nil && in.self == o.self && in.view.Port == o.view.Port && maps.Equal(in.suspended, o.suspended) &&
		(in.view == o.view || maps.Equal(in.view.Hosts, o.view.Hosts))
}

func (in *input) place(m *wire.NetworkMembers) *place {
	by := in.parts(m)
	n := &place{members: m, overlay: in.overlay(m)}
	if m.Ingress {
		n.published = published(m, by)
		return n
	}
	n.services = services(m, by)
	n.names = names(m, by)
	return n
}

// slots are the numbers of the nodes in the mesh.
func slots(hosts map[string]wire.Host) []int {
	var list []int
	for _, h := range hosts {
		if h.Slot > 0 {
			list = append(list, h.Slot)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// byID is the order of a network's things.
func byID[V any](m map[string]V) []V {
	list := make([]V, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[id])
	}
	return list
}
