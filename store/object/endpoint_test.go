package object_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skep/store/object"
)

func fullAttachment() object.Attachment {
	o := object.Overlay{
		Network: "net1", Name: "front", Task: "task1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.5/24")},
		Aliases: []string{"web"}, Ports: []object.Port{{Protocol: "tcp", Host: 8080, Container: 80}},
	}
	return object.Attachment{
		Endpoint: object.Endpoint{
			ID: "c1", Network: "bridge", Interface: "eth1", Overlays: []object.Overlay{o},
			Ports: []object.Port{{Protocol: "udp", Container: 53}},
			DNS: &object.ResolverConfig{
				Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			},
		},
		Interface: "vaaaaaa01020304", Nameserver: []string{"127.0.0.11"}, Search: []string{"example.com"},
		Overlays: []object.OverlayAttachment{{Overlay: o.Clone(), Interface: "eth0", Gateways: []netip.Addr{netip.MustParseAddr("10.0.1.1")}}},
	}
}

// An attachment has fields of the same name as its endpoint; both are kept.
func TestAttachment_SurvivesJSON(t *testing.T) {
	want := fullAttachment()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got object.Attachment
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func TestAttachment_CloneSharesNothing(t *testing.T) {
	a := fullAttachment()
	b := a.Clone()
	b.Ports[0].Host, b.Endpoint.Overlays[0].Aliases[0], b.Overlays[0].Ports[0].Host = 1, "x", 1
	b.DNS.Nameservers[0] = netip.Addr{}
	b.Nameserver[0], b.Search[0], b.Overlays[0].Gateways[0] = "x", "x", netip.Addr{}
	b.Overlays[0].Addresses[0] = netip.Prefix{}
	if diff := cmp.Diff(fullAttachment(), a, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func TestOverlayMAC(t *testing.T) {
	for want, addrs := range map[string][]string{
		"":                  nil,
		"02:42:0a:00:01:03": {"fd00::7", "10.0.1.3"},
		"02:42:ab:cd:00:07": {"fd00::abcd:7"},
	} {
		var list []netip.Addr
		for _, a := range addrs {
			list = append(list, netip.MustParseAddr(a))
		}
		if got := object.OverlayMAC(list).String(); got != want {
			t.Errorf("%v: got %s, want %s", addrs, got, want)
		}
	}
}

func TestNode_DataAddr(t *testing.T) {
	for _, tt := range [][3]string{
		{"10.0.0.1", "10.0.0.2", "10.0.0.1"},
		{"", "::ffff:10.0.0.2", "10.0.0.2"},
		{"0.0.0.0", "fd00::1", "fd00::1"},
		{"fe80::1%eth0", "224.0.0.1", ""},
	} {
		n := &object.Node{DataPath: tt[0]}
		n.Status.Addr = tt[1]
		if got := n.DataAddr(); got.IsValid() != (tt[2] != "") || got.IsValid() && got.String() != tt[2] {
			t.Errorf("of %q and %q: %v", tt[0], tt[1], got)
		}
	}
}
