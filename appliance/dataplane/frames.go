package dataplane

import (
	"cmp"
	"net/netip"
	"slices"

	"skep/appliance/wire"
	"skep/net/ingress"
	"skep/net/overlay"
)

// What VXLAN and ESP take of a packet, in bytes.
const (
	vxlan4     = 50
	vxlan6     = 70
	encryption = 46
)

// overlay is where a network's frames go.
func (in *input) overlay(m *wire.NetworkMembers) *overlay.Network {
	own := in.view.Hosts[in.self.node]
	n := &overlay.Network{
		ID: m.ID, VNI: m.VNI, Port: dataPort(in.view), Local: own.Address,
		MTU: mtu(m.Network, in.self.mtu, own.Address), Peers: in.peers(m),
	}
	if m.Encrypted {
		n.Port++
	}
	for _, s := range m.Subnets {
		n.Subnets = append(n.Subnets, overlay.Subnet{Prefix: s.Prefix, Gateway: s.Gateway})
	}
	if m.Ingress && own.Slot > 0 {
		n.Router = router(m.Network, own.Slot)
		n.Peers = append(n.Peers, in.routers()...)
	}
	return n
}

// mtu is that of containers' devices.
func mtu(n wire.Network, underlay int, local netip.Addr) int {
	if n.MTU > 0 {
		return n.MTU
	}
	size := underlay - vxlan4
	if local.Is6() {
		size = underlay - vxlan6
	}
	if n.Encrypted {
		size -= encryption
		size -= size % 4
	}
	return size
}

// peers are the endpoints on other nodes, in the order of their IDs. An address
// that two of them have, which can be for a moment, is that of the one which
// others are led to.
func (in *input) peers(m *wire.NetworkMembers) []overlay.Peer {
	owner := map[netip.Addr]wire.Endpoint{}
	for _, e := range byID(m.Endpoints) {
		for _, a := range e.Addresses {
			if had, ok := owner[a]; !ok || rank(had) < rank(e) {
				owner[a] = e
			}
		}
	}
	list := make([]overlay.Peer, 0, len(m.Endpoints))
	for _, e := range byID(m.Endpoints) {
		vtep := in.view.Hosts[e.Node].Address
		if e.Node == in.self.node || !vtep.IsValid() || len(e.Addresses) == 0 {
			continue
		}
		if slices.ContainsFunc(e.Addresses, func(a netip.Addr) bool { return owner[a].ID != e.ID }) {
			continue
		}
		list = append(list, overlay.Peer{Addresses: e.Addresses, MAC: overlay.MAC(e.Addresses), VTEP: vtep})
	}
	return list
}

func rank(e wire.Endpoint) int {
	return slices.Index([]wire.EndpointState{wire.EndpointDraining, wire.EndpointPrepared, wire.EndpointActive}, e.State)
}

// routers are where the other nodes' meshes are.
func (in *input) routers() []overlay.Peer {
	var list []overlay.Peer
	for _, h := range byID(in.view.Hosts) {
		if h.ID != in.self.node && h.Slot > 0 && h.Address.IsValid() {
			list = append(list, overlay.Peer{MAC: ingress.RouterMAC(h.Slot), VTEP: h.Address})
		}
	}
	return list
}

// router is this node's mesh on its network.
func router(n wire.Network, slot int) *overlay.Router {
	r := &overlay.Router{MAC: ingress.RouterMAC(slot)}
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			r.Addresses = append(r.Addresses, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
		}
	}
	r.Addresses = append(r.Addresses, netip.PrefixFrom(ingress.RouterAddress(slot), 32))
	return r
}

// grown is a network with the peers of before and of after. While names and
// balancers change over, frames find both.
func grown(before, after *overlay.Network) *overlay.Network {
	if before == nil || before == after {
		return after
	}
	taken := map[netip.Addr]bool{}
	macs := map[string]bool{}
	for _, p := range after.Peers {
		macs[string(p.MAC)] = true
		for _, a := range p.Addresses {
			taken[a] = true
		}
	}
	var lost []overlay.Peer
	for _, p := range before.Peers {
		if !macs[string(p.MAC)] && !slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return taken[a] }) {
			lost = append(lost, p)
		}
	}
	if len(lost) == 0 {
		return after
	}
	both := *after
	both.Peers = slices.Concat(after.Peers, lost)
	return &both
}

// transition is what frames are to find while the rest changes from last to
// next, and whether that is more than what they are to find then.
func transition(last, next *desired) (list []*overlay.Network, more bool) {
	for id, n := range next.networks {
		o := n.overlay
		if old := last.place(id); old != nil {
			o = grown(old.overlay, o)
		}
		more = more || o != n.overlay
		list = append(list, o)
	}
	if last != nil {
		for id, n := range last.networks {
			if next.networks[id] == nil {
				list, more = append(list, n.overlay), true
			}
		}
	}
	slices.SortFunc(list, func(a, b *overlay.Network) int { return cmp.Compare(a.ID, b.ID) })
	return list, more
}
