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
