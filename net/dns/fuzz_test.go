// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"bytes"
	"testing"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

// FuzzPacket sends what a container may send.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web", "tasks.queue.shop", "nobody", "2.1.0.10.in-addr.arpa", "."} {
		f.Add(question(f, name, wire.TypeA), true)
		m := new(wire.Msg).SetQuestion(wire.Fqdn(name), wire.TypePTR)
		m.SetEdns0(1232, true)
		f.Add(pack(f, m), false)
	}
	f.Add([]byte("\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), true)
	local := dns.NewLocal(state(shop(), crowdNamed("n3", "crowd", 300)), dns.Client{ID: "c1", Networks: []string{"n1", "n3"}, Search: []string{"example.com"}})
	f.Fuzz(func(t *testing.T, packet []byte, datagram bool) {
		sent := bytes.Clone(packet)
		reply, forward := local.Answer(packet, datagram)
		if !bytes.Equal(sent, packet) {
			t.Fatal("the packet was changed")
		}
		if reply == nil {
			return
		}
		if forward {
			t.Fatal("answered and forwarded")
		}
		m := unpack(t, reply)
		limit := 65535
		asked := new(wire.Msg)
		readable := asked.Unpack(packet) == nil
		if datagram {
			limit = 512
			if opt := asked.IsEdns0(); readable && opt != nil {
				limit = max(512, int(opt.UDPSize()))
			}
		}
		if !m.Response || !bytes.Equal(reply[:2], packet[:2]) {
			t.Errorf("got %v to %x", m, packet)
		}
		if readable && len(reply) > limit {
			t.Errorf("%d bytes, more than %d", len(reply), limit)
		}
		if m.Rcode == wire.RcodeSuccess && readable && (len(m.Question) != 1 || m.Question[0] != asked.Question[0]) {
			t.Errorf("asked %v, answered %v", asked.Question, m.Question)
		}
	})
}

// FuzzReply has a name server elsewhere answer what it likes.
func FuzzReply(f *testing.F) {
	asked := question(f, "example.com", wire.TypeA)
	m := new(wire.Msg)
	if err := m.Unpack(asked); err != nil {
		f.Fatal(err)
	}
	f.Add(asked, pack(f, answering("192.0.2.1")("udp", m)))
	f.Add(asked, pack(f, failing(wire.RcodeRefused)("udp", m)))
	f.Fuzz(func(t *testing.T, asked, reply []byte) {
		if _, forward := dns.NewLocal(dns.State{}, dns.Client{ID: "c1"}).Answer(asked, true); !forward {
			return // it would not have been asked
		}
		if !dns.Answers(asked, reply) {
			return
		}
		dns.RefusesToAnswer(reply)
		b := dns.Shorten(asked, reply)
		if !bytes.Equal(b[:2], asked[:2]) {
			t.Errorf("got %x to %x", b, asked)
		}
		unpack(t, b)
	})
}

// FuzzNames sets names that nothing has checked.
func FuzzNames(f *testing.F) {
	f.Add("web", "front", "web.1.abc", "shop", "web.shop")
	f.Add("", "", "", "", ".")
	f.Add("WEB.", ".", "..", "a b", `\000`)
	f.Fuzz(func(t *testing.T, service, alias, own, network, asked string) {
		n := &dns.Network{
			ID: "n1", Name: network, Services: []dns.Service{{ID: "s1", Name: service, Aliases: []string{alias}}},
			Endpoints: []dns.Endpoint{{Service: "s1", Active: true, Names: []string{own}, Aliases: []string{alias}, Addresses: addrs("10.0.1.3")}},
		}
		c := dns.Client{ID: "c1", Networks: []string{"n1"}}
		local := dns.NewLocal(state(n), c)
		for _, name := range []string{service, alias, own, asked, "tasks." + service, service + "." + network, "3.1.0.10.in-addr.arpa"} {
			for _, kind := range []uint16{wire.TypeA, wire.TypePTR} {
				packet, err := new(wire.Msg).SetQuestion(wire.Fqdn(name), kind).Pack()
				if err != nil {
					continue
				}
				if reply, _ := local.Answer(packet, true); reply != nil {
					unpack(t, reply)
				}
			}
		}
	})
}
