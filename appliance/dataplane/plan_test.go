package dataplane

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/dns"
	"skep/net/ingress"
	"skep/net/overlay"
)

// at is the input of node n1.
func at(v *wire.NetworkView, local ...string) input {
	in := input{self: self{node: "n1", mtu: 1500, noESP: "no xfrm"}, view: v, suspended: map[string]bool{}, local: map[string]bool{}}
	for _, id := range local {
		in.local[id] = true
	}
	return in
}

func TestPlan_Frames(t *testing.T) {
	clash := task("t0", "n3", wire.EndpointDraining, "10.0.1.4")
	six := front()
	six.Subnets = append(six.Subnets, wire.Subnet{Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: addr("fd00::1")})
	v := view(1, members(six, nil,
		task("ta", "n1", wire.EndpointActive, "10.0.1.3"), // here
		task("tb", "n2", wire.EndpointPrepared, "10.0.1.4", "fd00::4"),
		task("tc", "n3", wire.EndpointDraining, "10.0.1.5"),
		task("td", "gone", wire.EndpointActive, "10.0.1.6"),
		clash))
	got := plan(nil, at(v)).overlays()
	want := []*overlay.Network{{
		ID: "front", VNI: 4097, Port: 4789, MTU: 1450, Local: addr("192.0.2.1"),
		Subnets: []overlay.Subnet{
			{Prefix: netip.MustParsePrefix("10.0.1.0/24"), Gateway: addr("10.0.1.1")},
			{Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: addr("fd00::1")},
		},
		Peers: []overlay.Peer{
			{Addresses: addrs("10.0.1.4", "fd00::4"), MAC: overlay.MAC(addrs("10.0.1.4")), VTEP: addr("192.0.2.2")},
			{Addresses: addrs("10.0.1.5"), MAC: overlay.MAC(addrs("10.0.1.5")), VTEP: addr("192.0.2.3")},
		},
	}}
	if diff := cmp.Diff(want, got, values()); diff != "" {
		t.Error(diff)
	}
}

func TestPlan_MTU(t *testing.T) {
	four, six := addr("192.0.2.1"), addr("2001:db8::1")
	tests := []struct {
		n        wire.Network
		underlay int
		local    netip.Addr
		want     int
	}{
		{wire.Network{}, 1500, four, 1450},
		{wire.Network{}, 9000, six, 8930},
		{wire.Network{Encrypted: true}, 1500, four, 1404},
		{wire.Network{MTU: 1300, Encrypted: true}, 1500, four, 1300},
	}
	for _, tt := range tests {
		if got := mtu(tt.n, tt.underlay, tt.local); got != tt.want {
			t.Errorf("%+v on %d by %s: got %d, want %d", tt.n, tt.underlay, tt.local, got, tt.want)
		}
	}
}

func TestPlan_WhatANodeServes(t *testing.T) {
	secret := front()
	secret.ID, secret.Encrypted = "secret", true
	published := members(meshNetwork(), []wire.NetworkService{{ID: "web", Published: []wire.MeshPort{{Protocol: "tcp", Published: 80}}}})
	idle := members(meshNetwork(), []wire.NetworkService{{ID: "web"}})
	homeless := view(1, members(front(), nil))
	homeless.Hosts["n1"] = wire.Host{ID: "n1", Slot: 1}
	encrypting := at(view(1, members(secret, nil)))
	encrypting.self.noESP, encrypting.protected = "", true
	tests := []struct {
		name string
		in   input
		want []string
		port uint16
	}{
		{"no swarm", at(nil, "front"), nil, 0},
		{"a network before any container of it", at(view(1, members(front(), nil))), []string{"front"}, 4789},
		{"no address of its own", at(homeless), nil, 0},
		{"encryption is not there", at(view(1, members(secret, nil))), nil, 0},
		{"encryption is there", encrypting, []string{"secret"}, 4790},
		{"a mesh without published ports", at(view(1, idle)), nil, 0},
		{"a mesh with published ports", at(view(1, published)), []string{"mesh"}, 4789},
		{"a mesh that a container is on", at(view(1, idle), "mesh"), []string{"mesh"}, 4789},
	}
	for _, tt := range tests {
		var got []string
		for _, n := range plan(nil, tt.in).overlays() {
			got = append(got, n.ID)
			if n.Port != tt.port {
				t.Errorf("%s: port %d", tt.name, n.Port)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestPlan_ServicesAndNames(t *testing.T) {
	down := host(3)
	down.Down = true
	tests := []struct {
		name      string
		endpoints []wire.Endpoint
		suspended string
		want      []balance.Backend
		active    map[string]bool
	}{
		{
			"by state",
			[]wire.Endpoint{
				task("t1", "n1", wire.EndpointActive, "10.0.1.3"), task("t2", "n2", wire.EndpointDraining, "10.0.1.4"),
				task("t3", "n2", wire.EndpointPrepared, "10.0.1.5"),
			},
			"",
			[]balance.Backend{{Address: addr("10.0.1.3")}, {Address: addr("10.0.1.4"), Draining: true}},
			map[string]bool{"10.0.1.3": true},
		},
		{
			"on a node that is down, or unknown", []wire.Endpoint{
				task("t1", "n3", wire.EndpointActive, "10.0.1.3"), task("t2", "gone", wire.EndpointActive, "10.0.1.4"),
				task("t3", "n3", wire.EndpointDraining, "10.0.1.5"),
			}, "n3", nil, nil,
		},
		{
			"on a node that seems dead",
			[]wire.Endpoint{
				task("t1", "n1", wire.EndpointActive, "10.0.1.3"), task("t2", "n2", wire.EndpointActive, "10.0.1.4"),
				task("t3", "n2", wire.EndpointDraining, "10.0.1.5"),
			},
			"n2",
			[]balance.Backend{{Address: addr("10.0.1.3")}},
			map[string]bool{"10.0.1.3": true},
		},
		{
			"nobody but on a node that seems dead",
			[]wire.Endpoint{
				task("t1", "n1", wire.EndpointDraining, "10.0.1.3"), task("t2", "n2", wire.EndpointActive, "10.0.1.4"),
			},
			"n2",
			[]balance.Backend{{Address: addr("10.0.1.3"), Draining: true}, {Address: addr("10.0.1.4")}},
			map[string]bool{"10.0.1.4": true},
		},
		{
			"nobody takes this node for dead",
			[]wire.Endpoint{
				task("t1", "n1", wire.EndpointActive, "10.0.1.3"), task("t2", "n2", wire.EndpointActive, "10.0.1.4"),
			},
			"n1",
			[]balance.Backend{{Address: addr("10.0.1.3")}, {Address: addr("10.0.1.4")}},
			map[string]bool{"10.0.1.3": true, "10.0.1.4": true},
		},
	}
	for _, tt := range tests {
		v := view(1, members(front(), []wire.NetworkService{web("10.0.1.2", "fd00::2")}, tt.endpoints...))
		v.Hosts["n3"] = down
		in := at(v)
		in.suspended[tt.suspended] = true
		n := plan(nil, in).networks["front"]
		want := []balance.Service{{Address: addr("10.0.1.2"), Backends: tt.want}, {Address: addr("fd00::2")}}
		if diff := cmp.Diff(want, n.services, values()); diff != "" {
			t.Errorf("%s: services: %s", tt.name, diff)
		}
		for _, e := range n.names.Endpoints {
			if e.Active != tt.active[e.Addresses[0].String()] {
				t.Errorf("%s: %s: active is %t", tt.name, e.Addresses, e.Active)
			}
		}
	}
}

func TestPlan_NamesAreAllThatIsKnown(t *testing.T) {
	guest := wire.Endpoint{
		ID: "g1", Node: "n2", State: wire.EndpointActive, Addresses: addrs("10.0.1.9"), Names: []string{"box"}, Aliases: []string{"tools"},
	}
	v := view(1, members(front(), []wire.NetworkService{web("10.0.1.2")}, task("t1", "n1", wire.EndpointPrepared, "10.0.1.3"), guest))
	want := &dns.Network{
		ID: "front", Name: "Front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		Services: []dns.Service{{ID: "web", Name: "Web", VIPs: addrs("10.0.1.2")}},
		Endpoints: []dns.Endpoint{
			{Active: true, Addresses: addrs("10.0.1.9"), Names: []string{"box"}, Aliases: []string{"tools"}},
			{Service: "web", Addresses: addrs("10.0.1.3"), Names: []string{"web.t1"}},
		},
	}
	if diff := cmp.Diff(want, plan(nil, at(v)).names().Networks["front"], values()); diff != "" {
		t.Error(diff)
	}
}

// onMesh is a task of a service that publishes port 80, as the index-th of its ports.
func onMesh(service, id, node string, state wire.EndpointState, address string, target uint16, index int) wire.Endpoint {
	e := task(id, node, state, address)
	e.Network, e.Service = "mesh", service
	e.Ports = []wire.MeshPort{{Protocol: "tcp", Published: 80, Target: target, Index: index}, {Protocol: "udp", Published: 80, Target: 1, Index: index + 1}}
	return e
}

func publishing(id, source string) wire.NetworkService {
	return wire.NetworkService{Network: "mesh", ID: id, Source: source, Published: []wire.MeshPort{{Protocol: "tcp", Published: 80, Target: 8080}}}
}

func TestPlan_Mesh(t *testing.T) {
	v := view(1, members(meshNetwork(), []wire.NetworkService{publishing("web", "preserve"), publishing("old", "snat")},
		onMesh("web", "t1", "n1", wire.EndpointActive, "10.0.0.3", 8080, 0),
		onMesh("web", "t2", "n2", wire.EndpointPrepared, "10.0.0.4", 8080, 0),
		onMesh("old", "t3", "n2", wire.EndpointDraining, "10.0.0.5", 9090, 1)))
	d := plan(nil, at(v))
	want := &ingress.MeshState{
		Slot: 1, Routers: []int{1, 2, 3}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Published: []ingress.Published{{
			Protocol: "tcp", Port: 80, Service: "web", Source: "preserve",
			Backends: []ingress.MeshBackend{
				{Address: addr("10.0.0.3"), Target: 8080},
				{Address: addr("10.0.0.5"), Target: 9090, Index: 1, Draining: true},
			},
		}},
	}
	if diff := cmp.Diff(want, d.mesh, values()); diff != "" {
		t.Error(diff)
	}
	n := d.networks["mesh"].overlay
	router := &overlay.Router{
		MAC:       ingress.RouterMAC(1),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.PrefixFrom(ingress.RouterAddress(1), 32)},
	}
	if diff := cmp.Diff(router, n.Router, values()); diff != "" {
		t.Error(diff)
	}
	// The other nodes' tasks, and then their routers.
	var peers []string
	for _, p := range n.Peers {
		peers = append(peers, p.VTEP.String()+" "+p.MAC.String())
	}
	wantPeers := []string{
		"192.0.2.2 02:42:0a:00:00:04", "192.0.2.2 02:42:0a:00:00:05",
		"192.0.2.2 " + ingress.RouterMAC(2).String(), "192.0.2.3 " + ingress.RouterMAC(3).String(),
	}
	if diff := cmp.Diff(wantPeers, peers); diff != "" {
		t.Error(diff)
	}
	// A node that has no slot serves no ports.
	v.Hosts["n1"] = wire.Host{ID: "n1", Address: addr("192.0.2.1")}
	if d := plan(nil, at(v)); d.mesh != nil || d.networks["mesh"].overlay.Router != nil {
		t.Errorf("mesh without a slot: %+v", d.mesh)
	}
}

func TestPlan_SharesWhatIsTheSame(t *testing.T) {
	same := members(front(), nil, task("t1", "n2", wire.EndpointActive, "10.0.1.3"))
	mesh := members(meshNetwork(), []wire.NetworkService{publishing("web", "")})
	one := plan(nil, at(view(1, same, mesh)))
	two := plan(one, at(view(2, same, mesh, members(wire.Network{ID: "other"}, nil))))
	if one.networks["front"] != two.networks["front"] || one.mesh != two.mesh || two.networks["other"] == nil {
		t.Error("what is the same is not shared")
	}
	moved := view(3, same, mesh)
	moved.Hosts["n2"] = wire.Host{ID: "n2", Address: addr("192.0.2.9"), Slot: 9}
	three := plan(two, at(moved))
	if three.networks["front"] == two.networks["front"] || three.networks["front"].overlay.Peers[0].VTEP != addr("192.0.2.9") {
		t.Error("a host's move was not seen")
	}
	if three.mesh == two.mesh || three.mesh.Routers[2] != 9 {
		t.Error("a router's move was not seen")
	}
	if again := plan(three, at(moved)); again.networks["front"] != three.networks["front"] {
		t.Error("a plan that follows itself is another")
	}
}

func TestPlan_KeepsANetworkForItsContainers(t *testing.T) {
	one := plan(nil, at(view(1, members(front(), nil)), "front"))
	two := plan(one, at(view(2), "front"))
	if two.networks["front"] != one.networks["front"] {
		t.Error("the network was taken from under a container")
	}
	if three := plan(two, at(view(3))); len(three.networks) > 0 {
		t.Error("the network is left")
	}
	if left := plan(two, at(nil, "front")); len(left.networks) > 0 {
		t.Error("the network is left although the node left the swarm")
	}
}

func TestTransition_NothingIsLostBeforeItsTime(t *testing.T) {
	before := plan(nil, at(view(1, members(front(), nil,
		task("t1", "n2", wire.EndpointActive, "10.0.1.3"), task("t2", "n2", wire.EndpointActive, "10.0.1.4")), members(wire.Network{ID: "gone"}, nil))))
	after := plan(before, at(view(2, members(front(), nil,
		task("t3", "n3", wire.EndpointActive, "10.0.1.3"), task("t4", "n3", wire.EndpointActive, "10.0.1.5")))))
	list, more := transition(before, after)
	var got []string
	for _, n := range list {
		got = append(got, n.ID)
		for _, p := range n.Peers {
			got = append(got, p.Addresses[0].String()+" at "+p.VTEP.String())
		}
	}
	// The address that another one has now is that one's.
	want := []string{"front", "10.0.1.3 at 192.0.2.3", "10.0.1.5 at 192.0.2.3", "10.0.1.4 at 192.0.2.2", "gone"}
	if diff := cmp.Diff(want, got); diff != "" || !more {
		t.Error(diff, more)
	}
	if list, more := transition(after, after); more || list[0] != after.networks["front"].overlay {
		t.Error("there is something to do although nothing changed")
	}
}
