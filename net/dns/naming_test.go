// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func state(networks ...*dns.Network) dns.State {
	s := dns.State{Version: 1, Networks: map[string]*dns.Network{}}
	for _, n := range networks {
		s.Networks[n.ID] = n
	}
	return s
}

// shop is a network with services of all kinds, and a guest.
func shop() *dns.Network {
	return &dns.Network{
		ID: "n1", Name: "Shop",
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		Services: []dns.Service{
			{ID: "s1", Name: "Web", Aliases: []string{"front"}, VIPs: addrs("10.0.1.2", "fd00:1::2")},
			{ID: "s2", Name: "queue"},
			{ID: "s3", Name: "idle", Aliases: []string{"lazy"}, VIPs: addrs("10.0.1.9")},
			{ID: "s4", Name: "none"},
		},
		Endpoints: []dns.Endpoint{
			{
				Service: "s1", Active: true, Names: []string{"web.1.abc", "0123456789ab"}, Aliases: []string{"www.example.com"},
				Addresses: addrs("10.0.1.3", "fd00:1::3"),
			},
			{Service: "s1", Active: true, Names: []string{"web.2.def"}, Aliases: []string{"www.example.com"}, Addresses: addrs("10.0.1.4")},
			{Service: "s1", Names: []string{"web.3.ghi"}, Aliases: []string{"next"}, Addresses: addrs("10.0.1.5")},
			{Service: "s2", Active: true, Names: []string{"queue.1.abc"}, Aliases: []string{"shared"}, Addresses: addrs("10.0.1.6")},
			{Service: "s2", Active: true, Names: []string{"queue.2.def"}, Addresses: addrs("10.0.1.7")},
			{Active: true, Names: []string{"guest"}, Aliases: []string{"shared"}, Addresses: addrs("10.0.1.8")},
			{Service: "s3", Names: []string{"idle.1.abc"}, Addresses: addrs("10.0.1.10")},
		},
	}
}

// back is another network, where a name means something else.
func back() *dns.Network {
	return &dns.Network{
		ID: "n2", Name: "back", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")},
		Services:  []dns.Service{{ID: "s1", Name: "web", VIPs: addrs("10.0.2.2")}, {ID: "s9", Name: "store", VIPs: addrs("10.0.2.9")}},
		Endpoints: []dns.Endpoint{{Service: "s9", Active: true, Names: []string{"store.1.abc"}, Addresses: addrs("10.0.2.3", "fd00:2::3")}},
	}
}

// question is a packet that asks.
func question(tb testing.TB, name string, kind uint16) []byte {
	tb.Helper()
	b, err := new(wire.Msg).SetQuestion(wire.Fqdn(name), kind).Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// unpack reads an answer.
func unpack(tb testing.TB, b []byte) *wire.Msg {
	tb.Helper()
	m := new(wire.Msg)
	if err := m.Unpack(b); err != nil {
		tb.Fatalf("unpack %x: %v", b, err)
	}
	return m
}

// text is an answer in one line: its code, and the lifetime and contents of records, in order.
func text(m *wire.Msg) string {
	out := []string{wire.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		value := strings.TrimPrefix(rr.String(), rr.Header().String())
		out = append(out, fmt.Sprintf("%d:%s", rr.Header().Ttl, value))
	}
	slices.Sort(out[1:])
	return strings.Join(out, " ")
}

// says is what a client is told of a name; "forward" if others are asked.
func says(tb testing.TB, s dns.State, c dns.Client, name string, kind uint16) string {
	tb.Helper()
	reply, forward := dns.NewLocal(s, c).Answer(question(tb, name, kind), false)
	if forward {
		return "forward"
	}
	return text(unpack(tb, reply))
}

func TestNames(t *testing.T) {
	client := dns.Client{ID: "c1", Networks: []string{"n1", "n2", "unknown"}}
	const a, aaaa, ptr = wire.TypeA, wire.TypeAAAA, wire.TypePTR
	tests := []struct {
		name string
		kind uint16
		want string
	}{
		// A service with a virtual address, whatever the case of the letters.
		{"web", a, "NOERROR 60:10.0.1.2"},
		{"WEB", a, "NOERROR 60:10.0.1.2"},
		{"web", aaaa, "NOERROR 60:fd00:1::2"},
		{"web.shop", a, "NOERROR 60:10.0.1.2"},
		{"wEb.sHOP", a, "NOERROR 60:10.0.1.2"},
		// The network's name chooses among two that know the name; else the order does.
		{"web.back", a, "NOERROR 60:10.0.2.2"},
		{"web.back", aaaa, "NOERROR"},
		{"store", a, "NOERROR 60:10.0.2.9"},
		// It is known without an endpoint that is active.
		{"idle", a, "NOERROR 60:10.0.1.9"},
		{"tasks.idle", a, "NOERROR"},
		// Its tasks.
		{"tasks.web", a, "NOERROR 5:10.0.1.3 5:10.0.1.4"},
		{"Tasks.Web.Shop", a, "NOERROR 5:10.0.1.3 5:10.0.1.4"},
		{"tasks.web", aaaa, "NOERROR 5:fd00:1::3"},
		{"tasks.store", aaaa, "NOERROR 5:fd00:2::3"},
		// A service without a virtual address.
		{"queue", a, "NOERROR 5:10.0.1.6 5:10.0.1.7"},
		{"queue", aaaa, "NOERROR"},
		{"tasks.queue", a, "NOERROR 5:10.0.1.6 5:10.0.1.7"},
		{"none", a, "NOERROR"},
		// Aliases lead to the service, and are known while an endpoint has them.
		{"front", a, "NOERROR 60:10.0.1.2"},
		{"tasks.front", a, "NOERROR 5:10.0.1.3 5:10.0.1.4"},
		{"www.example.com", a, "NOERROR 60:10.0.1.2"},
		{"tasks.www.example.com", a, "NOERROR 5:10.0.1.3 5:10.0.1.4"},
		{"www.example.com.shop", a, "NOERROR 60:10.0.1.2"},
		{"lazy", a, "forward"},
		{"next", a, "forward"},
		{"shared", a, "NOERROR 5:10.0.1.6 5:10.0.1.8"},
		// An endpoint's own names, also before it is active.
		{"web.1.abc", a, "NOERROR 5:10.0.1.3"},
		{"0123456789AB", aaaa, "NOERROR 5:fd00:1::3"},
		{"web.3.ghi", a, "NOERROR 5:10.0.1.5"},
		{"web.3.ghi.shop", a, "NOERROR 5:10.0.1.5"},
		{"guest", a, "NOERROR 5:10.0.1.8"},
		{"guest.shop", a, "NOERROR 5:10.0.1.8"},
		// Other kinds of records of a name that is known.
		{"web", wire.TypeMX, "NOERROR"},
		{"web", wire.TypeHTTPS, "NOERROR"},
		{"web", wire.TypeANY, "NOERROR 60:10.0.1.2 60:fd00:1::2"},
		{"web", wire.TypeAXFR, "NOTIMP"},
		{"example.com", wire.TypeAXFR, "NOTIMP"},
		// Addresses.
		{"2.1.0.10.in-addr.arpa", ptr, "NOERROR 60:Web.shop."},
		{"3.1.0.10.in-addr.arpa", ptr, "NOERROR 5:web.1.abc.shop."},
		{"5.1.0.10.IN-ADDR.arpa", ptr, "NOERROR 5:web.3.ghi.shop."},
		{"9.2.0.10.in-addr.arpa", ptr, "NOERROR 60:store.back."},
		{"2.1.0.10.in-addr.arpa", a, "NOERROR"},
		{"77.1.0.10.in-addr.arpa", ptr, "NXDOMAIN"},
		{"77.9.0.10.in-addr.arpa", ptr, "forward"},
		{"11.0.0.127.in-addr.arpa", ptr, "NXDOMAIN"},
		{"3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", ptr, "NOERROR 5:web.1.abc.shop."},
		{"8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", ptr, "NXDOMAIN"},
		{"1.0.10.in-addr.arpa", ptr, "forward"},
		// What nobody else is asked for, and what others are.
		{"tasks.nobody", a, "NXDOMAIN"},
		{"tasks.nobody", wire.TypeTXT, "NXDOMAIN"},
		{"tasks.nobody.shop", a, "NXDOMAIN"},
		{"tasks.example.com", a, "forward"},
		{"nobody.shop", a, "forward"},
		{"nobody", a, "forward"},
		{"example.com", a, "forward"},
		{"example.com", wire.TypeTXT, "forward"},
		{"web.example.com", a, "forward"},
		{`a\.b`, a, "forward"},
		{`web\.back`, a, "forward"},
		{".", wire.TypeNS, "forward"},
	}
	for _, tt := range tests {
		t.Run(tt.name+"/"+wire.TypeToString[tt.kind], func(t *testing.T) {
			if got := says(t, state(shop(), back()), client, tt.name, tt.kind); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNames_OfOneLabelAreForwardedUnlessTheClientSearches(t *testing.T) {
	tests := []struct {
		search []string
		name   string
		want   string
	}{
		{nil, "nobody", "forward"},
		{[]string{"."}, "nobody", "forward"},
		{[]string{"corp.example"}, "nobody", "NXDOMAIN"},
		{[]string{"corp.example"}, "nobody.corp.example", "forward"},
		{[]string{"corp.example"}, "web", "NOERROR 60:10.0.1.2"},
	}
	for _, tt := range tests {
		c := dns.Client{ID: "c1", Networks: []string{"n1"}, Search: tt.search}
		if got := says(t, state(shop()), c, tt.name, wire.TypeA); got != tt.want {
			t.Errorf("%s, searching %v: got %s, want %s", tt.name, tt.search, got, tt.want)
		}
	}
}

func TestNames_OfOtherNetworksAreNotKnown(t *testing.T) {
	c := dns.Client{ID: "c1", Networks: []string{"n2"}}
	s := state(shop(), back())
	for name, want := range map[string]string{
		"queue": "forward", "queue.shop": "forward", "web": "NOERROR 60:10.0.2.2", "2.1.0.10.in-addr.arpa": "forward",
	} {
		if got := says(t, s, c, name, wire.TypeA); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestSet_AnswersFromWhatWasSetLast(t *testing.T) {
	r := dns.New(dns.Config{})
	if r.Version() != 0 {
		t.Errorf("version %d before the first state", r.Version())
	}
	r.Set(dns.State{Version: 7})
	if r.Version() != 7 {
		t.Errorf("got version %d, want 7", r.Version())
	}
}

func TestReverse(t *testing.T) {
	tests := map[string]string{
		"4.3.2.1.in-addr.arpa":     "1.2.3.4",
		"255.3.2.1.in-addr.arpa":   "1.2.3.255",
		"256.3.2.1.in-addr.arpa":   "",
		"5.4.3.2.1.in-addr.arpa":   "",
		"3.2.1.in-addr.arpa":       "",
		".3.2.1.in-addr.arpa":      "",
		"-1.3.2.1.in-addr.arpa":    "",
		"in-addr.arpa":             "",
		"4.3.2.1.in-addr.arpa.com": "",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa":     "2001:db8::1",
		"g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa":     "",
		"0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa":       "",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.0.0.ip6.arpa": "",
	}
	for name, want := range tests {
		a, ok := dns.Reverse([]byte(name))
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s: got %v %t, want %q", name, a, ok, want)
		}
	}
}
