// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

// crowd is a network with a service of n tasks.
func crowd(n int) *dns.Network {
	out := &dns.Network{ID: "n1", Name: "shop", Services: []dns.Service{{ID: "s1", Name: "web", VIPs: addrs("10.0.0.1")}}}
	a := netip.MustParseAddr("10.1.0.0")
	for i := range n {
		a = a.Next()
		out.Endpoints = append(out.Endpoints, dns.Endpoint{
			Service: "s1", Active: true, Names: []string{fmt.Sprintf("web.%d", i)}, Addresses: []netip.Addr{a},
		})
	}
	return out
}

func pack(tb testing.TB, m *wire.Msg) []byte {
	tb.Helper()
	b, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestAnswer_IsCutToWhatTheClientTakes(t *testing.T) {
	local := dns.NewLocal(state(crowd(500)), dns.Client{ID: "c1", Networks: []string{"n1"}})
	const head = 12 + 1 + 6 + 4 + 4
	tests := []struct {
		name     string
		size     uint16 // 0: without EDNS
		datagram bool
		want     int
		cut      bool
	}{
		{"plain", 0, true, (512 - head) / 16, true},
		{"edns that asks for less than anybody may", 100, true, (512 - head - 11) / 16, true},
		{"edns 1232", 1232, true, (1232 - head - 11) / 16, true},
		{"edns 4096", 4096, true, (4096 - head - 11) / 16, true},
		{"edns 65535", 65535, true, (4096 - head - 11) / 16, true},
		{"tcp", 0, false, 500, false},
		{"tcp with edns", 512, false, 500, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := new(wire.Msg).SetQuestion("tasks.web.", wire.TypeA)
			if tt.size > 0 {
				m.SetEdns0(tt.size, false)
			}
			reply, _ := local.Answer(pack(t, m), tt.datagram)
			got := unpack(t, reply)
			if len(got.Answer) != tt.want || got.Truncated != tt.cut || tt.datagram && len(reply) > max(512, int(tt.size)) {
				t.Errorf("got %d records in %d bytes, cut %t; want %d, cut %t", len(got.Answer), len(reply), got.Truncated, tt.want, tt.cut)
			}
			if (got.IsEdns0() != nil) != (tt.size > 0) {
				t.Errorf("got OPT %v", got.IsEdns0())
			}
		})
	}
}

func TestAnswer_HasAsManyAsAMessageHolds(t *testing.T) {
	local := dns.NewLocal(state(crowd(9000)), dns.Client{ID: "c1", Networks: []string{"n1"}})
	reply, _ := local.Answer(question(t, "tasks.web", wire.TypeA), false)
	if got := unpack(t, reply); len(got.Answer) != (65535-27)/16 || got.Truncated {
		t.Errorf("got %d records, cut %t", len(got.Answer), got.Truncated)
	}
}

func TestAnswer_IsInAnOrderThatChanceDecides(t *testing.T) {
	local := dns.NewLocal(state(crowd(100)), dns.Client{ID: "c1", Networks: []string{"n1"}})
	first, seen := map[string]int{}, map[string]int{}
	packet := question(t, "tasks.web", wire.TypeA)
	for range 1000 {
		reply, _ := local.Answer(packet, true)
		for i, rr := range unpack(t, reply).Answer {
			seen[rr.String()]++
			if i == 0 {
				first[rr.String()]++
			}
		}
	}
	if len(first) < 90 || len(seen) != 100 {
		t.Errorf("%d of 100 were first, %d were in answers that have room for 30", len(first), len(seen))
	}
	for rr, n := range seen {
		if n < 150 || n > 500 {
			t.Errorf("%s was in %d of 1000 answers", rr, n)
		}
	}
}

func TestAnswer_RepeatsTheQuestionAsItCame(t *testing.T) {
	local := dns.NewLocal(state(shop()), dns.Client{ID: "c1", Networks: []string{"n1"}})
	reply, _ := local.Answer(question(t, "wEb.ShOp", wire.TypeA), true)
	m := unpack(t, reply)
	if m.Question[0].Name != "wEb.ShOp." || m.Answer[0].Header().Name != "wEb.ShOp." {
		t.Errorf("got %v", m)
	}
	if !m.Response || !m.RecursionDesired || !m.RecursionAvailable || m.Truncated {
		t.Errorf("got header %v", m.MsgHdr)
	}
}

func TestAnswer_ToPacketsThatAreNoQuestions(t *testing.T) {
	ask := func(change func(*wire.Msg)) []byte {
		m := new(wire.Msg).SetQuestion("web.", wire.TypeA)
		m.Id = 0x1234
		change(m)
		return pack(t, m)
	}
	good := ask(func(*wire.Msg) {})
	edns1 := ask(func(m *wire.Msg) { m.SetEdns0(4096, true); m.IsEdns0().SetVersion(1) })
	twoOPT := ask(func(m *wire.Msg) { m.SetEdns0(4096, false); m.Extra = append(m.Extra, m.Extra[0]) })
	tests := []struct {
		name   string
		packet []byte
		want   string // the code; empty: no answer
	}{
		{"nothing", nil, ""},
		{"part of a header", good[:11], ""},
		{"an answer", ask(func(m *wire.Msg) { m.Response = true }), ""},
		{"another operation", ask(func(m *wire.Msg) { m.Opcode = wire.OpcodeNotify }), "NOTIMP"},
		{"no question", good[:12], "FORMERR"},
		{"two questions", ask(func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
		{"a question that ends early", good[:len(good)-1], "FORMERR"},
		{"a pointer in the question", append(bytes.Clone(good[:12]), 0xc0, 0x0c, 0, 1, 0, 1), "FORMERR"},
		{"a label of unknown kind", append(bytes.Clone(good[:12]), 0x41, 'a', 0, 0, 1, 0, 1), "FORMERR"},
		{"a name that is too long", append(bytes.Clone(good[:12]), bytes.Repeat([]byte("\x01a"), 128)...), "FORMERR"},
		{"records that are not there", append(bytes.Clone(good[:11]), append([]byte{1}, good[12:]...)...), "FORMERR"},
		{"two OPT records", twoOPT, "FORMERR"},
		{"a later EDNS", edns1, "BADVERS"},
		{"another class", ask(func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }), "NOTIMP"},
		{"any class", ask(func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassANY }), "NOERROR"},
		{"more behind it", append(bytes.Clone(good), 1, 2, 3), "NOERROR"},
		{"a question", good, "NOERROR"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			local := dns.NewLocal(state(shop()), dns.Client{ID: "c1", Networks: []string{"n1"}})
			reply, forward := local.Answer(tt.packet, true)
			if forward {
				t.Fatal("forwarded")
			}
			if tt.want == "" {
				if reply != nil {
					t.Errorf("got %x, want no answer", reply)
				}
				return
			}
			m := unpack(t, reply)
			if got := wire.RcodeToString[m.Rcode]; got != tt.want && (tt.want != "BADVERS" || m.Rcode != wire.RcodeBadVers) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if m.Id != 0x1234 && len(tt.packet) >= 2 {
				t.Errorf("got number %x", m.Id)
			}
		})
	}
}

// These are written by hand after what common resolvers send.
func TestAnswer_ToTheQuestionsOfCommonResolvers(t *testing.T) {
	tests := []struct{ name, packet, want string }{
		{"glibc, A", "1234 0100 0001 0000 0000 0000 03776562 00 0001 0001", "NOERROR 60:10.0.1.2"},
		{"glibc, AAAA", "1234 0100 0001 0000 0000 0000 0571756575 65 00 001c 0001", "NOERROR"},
		{"glibc with edns0", "1234 0100 0001 0000 0000 0001 03776562 00 0001 0001 00 0029 04b0 00000000 0000", "NOERROR 60:10.0.1.2"},
		{"musl, A", "1234 0100 0001 0000 0000 0000 03776562 00 0001 0001", "NOERROR 60:10.0.1.2"},
		{"busybox, reverse", "1234 0100 0001 0000 0000 0000 0132 0131 0130 023130 07696e2d61646472 0461727061 00 000c 0001", "NOERROR 60:Web.shop."},
		{"bind's nslookup", "1234 0100 0001 0000 0000 0000 03776562 0473686f70 00 0001 0001", "NOERROR 60:10.0.1.2"},
		{"dig, with a cookie", "1234 0120 0001 0000 0000 0001 03776562 00 0001 0001 00 0029 04d0 00000000 000c 000a0008 0102030405060708", "NOERROR 60:10.0.1.2"},
		{"Go, with edns0", "1234 0100 0001 0000 0000 0001 03776562 00 0001 0001 00 0029 04d0 00000000 0000", "NOERROR 60:10.0.1.2"},
		{"systemd-resolved, DO", "1234 0100 0001 0000 0000 0001 03776562 00 001c 0001 00 0029 05c0 00008000 0000", "NOERROR 60:fd00:1::2"},
		{"c-ares, random case", "1234 0100 0001 0000 0000 0000 03574562 0453684f70 00 0001 0001", "NOERROR 60:10.0.1.2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			packet, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(tt.packet), []byte(" "), nil)))
			if err != nil {
				t.Fatal(err)
			}
			local := dns.NewLocal(state(shop()), dns.Client{ID: "c1", Networks: []string{"n1"}})
			reply, _ := local.Answer(packet, true)
			m := unpack(t, reply)
			if got := text(m); got != tt.want || m.Id != 0x1234 {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			asked := unpack(t, packet)
			if opt := asked.IsEdns0(); opt != nil && (m.IsEdns0() == nil || m.IsEdns0().Do() != opt.Do()) {
				t.Errorf("got OPT %v to %v", m.IsEdns0(), opt)
			}
		})
	}
}

func TestAnswer_AllocatesNothing(t *testing.T) {
	local := dns.NewLocal(state(crowd(100)), dns.Client{ID: "c1", Networks: []string{"n1"}})
	for _, name := range []string{"web", "tasks.web", "nobody.shop", "1.0.1.10.in-addr.arpa"} {
		packet := question(t, name, wire.TypeA)
		if n := testing.AllocsPerRun(100, func() { local.Answer(packet, true) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestShorten(t *testing.T) {
	asked := question(t, "example.com", wire.TypeA)
	m := new(wire.Msg)
	if err := m.Unpack(asked); err != nil {
		t.Fatal(err)
	}
	long := new(wire.Msg).SetReply(m)
	for i := range 100 {
		rr, err := wire.NewRR(fmt.Sprintf("example.com. 60 IN A 192.0.2.%d", i))
		if err != nil {
			t.Fatal(err)
		}
		long.Answer = append(long.Answer, rr)
	}
	b := dns.Shorten(asked, pack(t, long))
	if got := unpack(t, b); len(b) > 512 || !got.Truncated || len(got.Answer) == 0 || got.Id != m.Id {
		t.Errorf("got %d bytes: %v", len(b), got.MsgHdr)
	}
	damaged := append(pack(t, long)[:600], 0xff)
	if got := unpack(t, dns.Shorten(asked, damaged)); !got.Truncated || len(got.Answer) != 0 || len(got.Question) != 1 {
		t.Errorf("got %v", got)
	}
}
