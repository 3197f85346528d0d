// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net/netip"
	"slices"
	"time"

	"skep/net/nft"
)

// meshTable is the name of the mesh's tables in the ingress network's namespace
// and in those of its members.
const meshTable = "skep-mesh"

// The devices in the ingress network's namespace: the leg to the node's bridge,
// and the network's own bridge, by which the router is on the network.
const (
	uplink = "node0"
	fabric = "br0"
)

// planNode is the table in the node's own namespace: what is for a published
// port of any of the node's addresses goes to the mesh.
func planNode(c MeshConfig, published []Published) nft.Table {
	var r nft.Rule
	toMesh := r.ToLocal().In("published", nft.Protocol, nft.DestPort).Translate([]nft.Target{{Address: c.Sandbox}})
	out := r.OutName(c.Bridge).To(netip.PrefixFrom(c.Sandbox, c.Sandbox.BitLen()))
	t := nft.Table{
		Name: "skep-mesh-" + c.Scope,
		Maps: []nft.Map{{Name: "published", Key: "inet_proto . inet_service"}},
		Chains: []nft.Chain{
			base("prerouting", "nat", nft.Prerouting, -100, toMesh),
			base("output", "nat", nft.Output, -100, toMesh),
			base("postrouting", "nat", nft.Postrouting, 100,
				out.From(loopback()).Masquerade(),
				// The answer to who is on the bridge must come back by the node.
				out.From(c.BridgeSubnet).Translated().Masquerade()),
		},
	}
	for _, p := range published {
		t.Maps[0].Elements = append(t.Maps[0].Elements, nft.Element{Key: p.listen().key()})
	}
	return t
}

// planRouter is the table of packets in the ingress network's namespace, beside
// the balancer's. It forwards what the balancer has given a task, and answers.
func planRouter(c MeshConfig, s MeshState, snat []target) nft.Table {
	var r nft.Rule
	out := r.OutName(fabric)
	pose := func(r nft.Rule) nft.Rule { return r.TranslateSource(RouterAddress(s.Slot)) }
	// Addresses that mean others on other nodes, or nobody at all.
	ambiguous := []nft.Rule{pose(out.From(c.BridgeSubnet)), pose(out.From(routers()))}
	for _, p := range s.subnets() {
		ambiguous = append(ambiguous, pose(out.From(p)))
	}
	t := nft.Table{
		Name: meshTable,
		Maps: []nft.Map{{Name: "snat", Key: "ipv4_addr . inet_proto . inet_service"}},
		Chains: []nft.Chain{
			base("forward", "filter", nft.Forward, 0,
				r.Established().Accept(),
				r.IfName(uplink).OutName(fabric).Translated().Accept(),
				r.Drop()),
			base("postrouting", "nat", nft.Postrouting, 100,
				append(ambiguous, pose(out.In("snat", nft.DestIPv4, nft.Protocol, nft.DestPort)))...),
		},
	}
	for _, d := range snat {
		t.Maps[0].Elements = append(t.Maps[0].Elements, nft.Element{Key: nft.PortKey(d.address, d.proto, d.port)})
	}
	return t
}

// together is within what time the parts of a packet are sent.
const together = 2 * time.Second

// planSteering is the table of frames in the ingress network's namespace. What
// a task answers goes to the gateway, who is nobody; here it gets the address
// of the router that the connection came in by. That is a matter of the packet
// alone: nothing is remembered but, for a moment, where its first part went.
func planSteering(s MeshState) nft.Table {
	var r nft.Rule
	by := nft.Map{Name: "routers", Key: "ipv4_addr", Value: "ether_addr"}
	slot := nft.Map{Name: "slots", Key: "inet_service", Value: "ether_addr"}
	for _, k := range s.routers() {
		mac := nft.Pack(RouterMAC(k))
		by.Elements = append(by.Elements, nft.Element{Key: nft.Pack(RouterAddress(k)), Value: mac})
		slot.Elements = append(slot.Elements, nft.Element{Key: nft.Pack(uint16(k)), Value: mac})
	}
	parts := nft.Map{Name: "parts", Key: "ipv4_addr . ipv4_addr . integer", Value: "ether_addr", Timeout: together}
	packet := []nft.Part{nft.SourceIPv4, nft.DestIPv4, nft.PacketID}
	answers := r.ToMAC(gatewayMAC())
	return nft.Table{
		Family: nft.Bridge, Name: meshTable, Maps: []nft.Map{by, slot, parts},
		Chains: []nft.Chain{
			base("prerouting", "filter", nft.Prerouting, -300,
				// To a client that a router posed as.
				answers.SetMACBy("routers", nft.DestIPv4),
				// Only the first part of a packet says which port it is from.
				answers.FirstFragment().RememberMAC("parts", "slots", nft.SourcePort, slotBits, packet...),
				answers.LaterFragment().SetMACBy("parts", packet...),
				// From a wire port, or about what was sent to one.
				answers.Proto(unixICMP).SetMACByMasked("slots", nft.BlamedPort, slotBits),
				answers.SetMACByMasked("slots", nft.SourcePort, slotBits),
				answers.Drop(),
				r.ToMAC(RouterMAC(s.Slot)).ForUs()),
		},
	}
}

// subnets are those of IPv4.
func (s MeshState) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s.Subnets {
		if p.Addr().Is4() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// routers are the slots in order, with this node's own, each once.
func (s MeshState) routers() []int {
	all := []int{s.Slot}
	for _, k := range s.Routers {
		if k >= 1 && k <= lastSlot {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
