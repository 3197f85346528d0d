// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"

	"skep/net/nft"
)

func meshConfig() MeshConfig {
	return MeshConfig{
		Scope: "0a1b2c", Bridge: "sk0a1b2c", BridgeSubnet: netip.MustParsePrefix("172.17.0.0/20"),
		BridgeGateway: netip.MustParseAddr("172.17.0.1"), Sandbox: netip.MustParseAddr("172.17.0.2"),
	}
}

func backend(last byte, target uint16, index int) MeshBackend {
	return MeshBackend{Address: netip.AddrFrom4([4]byte{10, 0, 0, last}), Target: target, Index: index}
}

func meshState() MeshState {
	drained := backend(12, 80, 0)
	drained.Draining = true
	return MeshState{
		Slot: 2, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		Routers: []int{1023, 1, 2, 256, 4096},
		Published: []Published{
			{Protocol: network.UDP, Port: 53, Service: "dns", Backends: []MeshBackend{backend(10, 5353, 1)}},
			{Protocol: network.TCP, Port: 8080, Service: "web", Backends: []MeshBackend{backend(11, 80, 0), drained}},
			{Protocol: network.TCP, Port: 9090, Service: "snat", Source: SNAT, Backends: []MeshBackend{backend(13, 80, 0)}},
			{Protocol: network.TCP, Port: 9091, Service: "many", Backends: []MeshBackend{backend(14, 90, 40), backend(14, 90, 40)}},
			{Protocol: network.TCP, Port: 7070, Service: "empty"},
		},
	}
}

// Everything that a node does for a state, as text.
func TestMeshPlan_Golden(t *testing.T) {
	c, s := meshConfig(), meshState()
	r := s.route(c.Sandbox)
	golden(t, "mesh-node.nft", planNode(c, r.published).String())
	golden(t, "mesh-router.nft", planRouter(c, s, r.snat).String())
	golden(t, "mesh-steering.nft", planSteering(s).String())
	golden(t, "mesh-member.nft", planMember(Member{
		Interface: "eth1", Address: netip.MustParsePrefix("10.0.0.10/24"), Gateway: netip.MustParseAddr("10.0.0.1"),
		Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Ports: []MemberPort{
			{Protocol: network.UDP, Target: 5353, Index: 1},
			{Protocol: network.TCP, Target: 80, Index: 0},
			{Protocol: network.TCP, Target: 90, Index: 40},
			{Protocol: network.SCTP, Target: 91, Index: 2},
		},
	}).String())
	var b strings.Builder
	for _, x := range r.services {
		b.WriteString(string(x.Protocol) + " " + netip.AddrPortFrom(x.Address, x.Port).String() + "\n")
		for _, y := range x.Backends {
			b.WriteString("\t" + netip.AddrPortFrom(y.Address, y.Port).String() + map[bool]string{true: " draining"}[y.Draining] + "\n")
		}
	}
	golden(t, "mesh-services.txt", b.String())
	if d := cmp.Diff(map[string]string{"many": "its tasks publish more than 40 ports"}, r.fallbacks); d != "" {
		t.Errorf("fallbacks (-want +got):\n%s", d)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, d)
	}
}

// The kernel holds what the text says.
func TestMeshPlan_KernelAgrees(t *testing.T) {
	c, s := meshConfig(), meshState()
	conn, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	empty := MeshState{Slot: 2}
	for _, pair := range [][2]nft.Table{
		{planNode(c, nil), planNode(c, s.route(c.Sandbox).published)},
		{planRouter(c, s, nil), planRouter(c, s, s.route(c.Sandbox).snat)},
		{planSteering(empty), planSteering(s)},
		{planMember(Member{Interface: "eth1", Address: netip.MustParsePrefix("10.0.0.10/24"), Subnet: s.Subnets[0]}), planMember(Member{
			Interface: "eth1", Address: netip.MustParsePrefix("10.0.0.10/24"), Subnet: s.Subnets[0],
			Ports: []MemberPort{{Protocol: network.TCP, Target: 80}, {Protocol: network.UDP, Target: 53, Index: 39}},
		})},
	} {
		one := table{want: pair[0]}
		for _, want := range []nft.Table{pair[0], pair[1], pair[0]} {
			one.want = want
			if err := one.set(conn); err != nil {
				t.Fatal(err)
			}
			if same, err := one.read(conn); err != nil || !same {
				got, _, _ := conn.Read(want.Family, want.Name)
				t.Fatalf("kernel differs: %v (-want +got):\n%s", err, cmp.Diff(want.String(), got.String()))
			}
		}
		if err := conn.Delete(pair[0].Family, pair[0].Name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWirePort(t *testing.T) {
	seen := map[uint16]bool{}
	for index := range 40 {
		for slot := 1; slot <= 1023; slot++ {
			p, ok := WirePort(index, slot)
			if !ok || seen[p] {
				t.Fatalf("index %d, slot %d: %d, %t", index, slot, p, ok)
			}
			seen[p] = true
			if int(p&slotBits) != slot || p&indexOfWire != uint16(firstWire+index*slots) {
				t.Fatalf("index %d, slot %d: %d cannot be told apart", index, slot, p)
			}
		}
	}
	for _, bad := range [][2]int{{-1, 1}, {40, 1}, {0, 0}, {0, 1024}} {
		if p, ok := WirePort(bad[0], bad[1]); ok {
			t.Errorf("%v has port %d", bad, p)
		}
	}
	if a := RouterAddress(1023); a != netip.MustParseAddr("169.254.67.255") || !routers().Contains(a) {
		t.Error(a)
	}
	if m := RouterMAC(1023).String(); m != "02:53:4b:00:03:ff" {
		t.Error(m)
	}
}
