package wire_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skep/appliance/wire"
	"skep/store/object"
)

func compareViews() cmp.Options {
	return cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(wire.NetworkItem{})}
}

func overlay(id string) wire.NetworkItem {
	return wire.NetworkItem{Network: &wire.Network{
		ID: id, Name: "name-" + id, VNI: 4096,
		Subnets: []wire.Subnet{{Prefix: netip.MustParsePrefix("10.0.1.0/24"), Gateway: netip.MustParseAddr("10.0.1.1")}},
	}}
}

func service(vips ...string) wire.NetworkItem {
	s := &wire.NetworkService{Network: "a", ID: "s", Name: "web"}
	for _, v := range vips {
		s.VIPs = append(s.VIPs, netip.MustParseAddr(v))
	}
	return wire.NetworkItem{Service: s}
}

func endpoint(id string, state wire.EndpointState) wire.NetworkItem {
	return wire.NetworkItem{Endpoint: &wire.Endpoint{
		Network: "a", ID: id, Service: "s", Node: "n1", State: state, Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.5")},
	}}
}

func host(id string) wire.NetworkItem {
	return wire.NetworkItem{Host: &wire.Host{ID: id, Address: netip.MustParseAddr("192.0.2.1"), Slot: 3}}
}

func gone(i wire.NetworkItem) wire.NetworkItem {
	switch {
	case i.Network != nil:
		i.Network = &wire.Network{ID: i.Network.ID}
	case i.Service != nil:
		i.Service = &wire.NetworkService{Network: i.Service.Network, ID: i.Service.ID}
	case i.Endpoint != nil:
		i.Endpoint = &wire.Endpoint{Network: i.Endpoint.Network, ID: i.Endpoint.ID}
	case i.Host != nil:
		i.Host = &wire.Host{ID: i.Host.ID}
	}
	i.Gone = true
	return i
}

func complete(version uint64, items ...wire.NetworkItem) *wire.Networks {
	return &wire.Networks{Complete: true, Version: version, Items: items}
}

func change(version uint64, items ...wire.NetworkItem) *wire.Networks {
	return &wire.Networks{Version: version, Items: items}
}

// describe is a view in few words.
func describe(v *wire.NetworkView) string {
	if v == nil {
		return "-"
	}
	text := fmt.Sprint(v.Version, ":")
	for _, id := range []string{"h", "i"} {
		if _, ok := v.Hosts[id]; ok {
			text += " host " + id
		}
	}
	for _, id := range []string{"a", "b"} {
		m := v.Networks[id]
		if m == nil {
			continue
		}
		text += fmt.Sprintf(" %s(%d services", id, len(m.Services))
		for _, e := range []string{"t1", "t2"} {
			if e, ok := m.Endpoints[e]; ok {
				text += " " + e.ID + " " + string(e.State)
			}
		}
		text += ")"
	}
	return text
}

func TestView_AppliesSets(t *testing.T) {
	v := wire.NewView(nil)
	more := complete(7, host("h"), overlay("a"))
	more.More = true
	for _, step := range []struct {
		part *wire.Networks
		want string
	}{
		{more, "-"},
		{complete(7, endpoint("t1", wire.EndpointPrepared), service("10.0.1.2")), "7: host h a(1 services t1 prepared)"},
		{change(8, endpoint("t1", wire.EndpointActive), endpoint("t2", wire.EndpointPrepared)), "8: host h a(1 services t1 active t2 prepared)"},
		{change(9, overlay("b"), host("i"), gone(endpoint("t1", ""))), "9: host h host i a(1 services t2 prepared) b(0 services)"},
		{change(10, gone(overlay("a")), gone(host("h")), gone(endpoint("t2", ""))), "10: host i b(0 services)"},
		{change(11), "11: host i b(0 services)"},
		{complete(5, overlay("a")), "5: a(0 services)"},
	} {
		got, err := v.Apply(step.part)
		if err != nil {
			t.Fatalf("before %q: %v", step.want, err)
		}
		if describe(got) != step.want {
			t.Errorf("got %q, want %q", describe(got), step.want)
		}
	}
}

func TestView_RefusesWhatNoManagerSays(t *testing.T) {
	whole := complete(7, overlay("a"), endpoint("t1", wire.EndpointActive))
	part := complete(7, overlay("a"))
	part.More = true
	for _, test := range []struct {
		name  string
		parts []*wire.Networks
		want  string
	}{
		{"changes first", []*wire.Networks{change(7)}, "do not begin with a complete set"},
		{"changes of the past", []*wire.Networks{whole, change(7)}, "version 7 follow those of version 7"},
		{"a torn set", []*wire.Networks{part, change(7)}, "end before they are whole"},
		{"two versions in a set", []*wire.Networks{part, complete(8)}, "end before they are whole"},
		{"an unknown network", []*wire.Networks{complete(7, endpoint("t1", wire.EndpointActive))}, `network "a" is not known`},
		{"nothing", []*wire.Networks{complete(7, wire.NetworkItem{})}, "not exactly one thing"},
		{"two things", []*wire.Networks{complete(7, wire.NetworkItem{Network: &wire.Network{ID: "a", VNI: 5}, Host: &wire.Host{ID: "h"}})}, "not exactly one thing"},
		{"too much of what is gone", []*wire.Networks{whole, change(8, wire.NetworkItem{Gone: true, Host: &wire.Host{ID: "h", Slot: 1}})}, "more than the key"},
		{"no state", []*wire.Networks{complete(7, overlay("a"), endpoint("t1", "well"))}, `state "well"`},
		{"no VNI", []*wire.Networks{complete(7, wire.NetworkItem{Network: &wire.Network{ID: "a"}})}, "out of range"},
		{"no ID", []*wire.Networks{complete(7, wire.NetworkItem{Host: &wire.Host{}})}, "no ID"},
		{"an impossible VIP", []*wire.Networks{complete(7, overlay("a"), service("224.0.0.1"))}, "VIPs"},
		{"an impossible slot", []*wire.Networks{complete(7, wire.NetworkItem{Host: &wire.Host{ID: "h", Slot: 1024}})}, "slot 1024"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := wire.NewView(nil)
			for i, p := range test.parts {
				got, err := v.Apply(p)
				if last := i == len(test.parts)-1; last && (err == nil || got != nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("got %v, %v, want an error with %q", describe(got), err, test.want)
				} else if !last && err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestView_SharesWhatIsTheSame(t *testing.T) {
	v := wire.NewView(nil)
	apply := func(p *wire.Networks) *wire.NetworkView {
		t.Helper()
		now, err := v.Apply(p)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	first := apply(complete(1, overlay("a"), overlay("b"), host("h"), service(), endpoint("t1", wire.EndpointActive)))
	before, err := first.Parts()
	if err != nil {
		t.Fatal(err)
	}
	same := apply(change(2, endpoint("t1", wire.EndpointActive), overlay("a"), service(), gone(endpoint("t2", ""))))
	if same.Networks["a"] != first.Networks["a"] {
		t.Error("another network, though nothing of it changed")
	}
	second := apply(change(3, endpoint("t1", wire.EndpointDraining)))
	if second.Networks["a"] == first.Networks["a"] || second.Networks["b"] != first.Networks["b"] {
		t.Error("not exactly the network that changed is another")
	}
	v = wire.NewView(second) // another session
	third := apply(complete(4, overlay("a"), overlay("b"), service(), endpoint("t1", wire.EndpointActive)))
	if third.Networks["a"] == second.Networks["a"] || third.Networks["b"] != second.Networks["b"] {
		t.Error("after a complete set not exactly the network that changed is another")
	}
	after, err := first.Parts()
	if err != nil {
		t.Fatal(err)
	}
	a, errA := object.Encode(before)
	b, errB := object.Encode(after)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("the first view has changed: %v, %v", errA, errB)
	}
}

// TestNetworks_GoThroughFramesInParts sends more than a frame can hold.
func TestNetworks_GoThroughFramesInParts(t *testing.T) {
	set := complete(9, host("h"), overlay("a"), service("10.0.1.2", "fd00::2"))
	for i := range 20000 {
		e := endpoint(fmt.Sprintf("task%021d", i), wire.EndpointActive)
		e.Endpoint.Names = []string{fmt.Sprintf("web.%d.task%021d", i, i)}
		set.Items = append(set.Items, e)
	}
	want, err := wire.NewView(nil).Apply(set)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := want.Parts()
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) < 2 {
		t.Fatalf("%d part", len(parts))
	}
	got, err := tell(t, wire.NewView(nil), parts)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareViews()); diff != "" {
		t.Errorf("view after frames (-want +got):\n%s", diff)
	}
}

// FuzzView feeds frames one after another, as a session does: whatever view comes
// of them can be told again, and is then the same.
func FuzzView(f *testing.F) {
	more := complete(7, host("h"), overlay("a"))
	more.More = true
	for _, parts := range [][]*wire.Networks{
		{complete(7, host("h"), overlay("a"), service("10.0.1.2"), endpoint("t1", wire.EndpointActive))},
		{more, complete(7, endpoint("t1", wire.EndpointPrepared)), change(8, gone(endpoint("t1", ""))), change(9, gone(overlay("a")), overlay("b"))},
		{complete(7, overlay("a")), complete(5, overlay("a"), service())},
	} {
		var frames []byte
		for _, p := range parts {
			b, err := send(&wire.Message{Networks: p})
			if err != nil {
				f.Fatal(err)
			}
			frames = append(frames, b...)
		}
		f.Add(frames)
	}
	f.Fuzz(func(t *testing.T, frames []byte) {
		c := wire.NewConn(&stream{in: bytes.NewReader(frames)})
		v := wire.NewView(nil)
		for {
			m, err := c.Receive(second)
			if err != nil || m.Networks == nil {
				return
			}
			now, err := v.Apply(m.Networks)
			if err != nil {
				return
			}
			if now == nil {
				continue
			}
			parts, err := now.Parts()
			if err != nil {
				t.Fatalf("view cannot be told again: %v", err)
			}
			again, err := tell(t, wire.NewView(nil), parts)
			if diff := cmp.Diff(now, again, compareViews()); err != nil || diff != "" {
				t.Fatalf("view told again: %v (-first +again):\n%s", err, diff)
			}
		}
	})
}

// tell sends parts through frames.
func tell(t *testing.T, v *wire.View, parts []*wire.Networks) (now *wire.NetworkView, err error) {
	t.Helper()
	for _, p := range parts {
		b, err := send(&wire.Message{Networks: p})
		if err != nil {
			return nil, err
		}
		m, err := receive(b)
		if err != nil {
			return nil, err
		}
		if now, err = v.Apply(m.Networks); err != nil {
			return nil, err
		}
	}
	return now, nil
}
