// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

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

// shop is a network with a service of two tasks.
func shop() *dns.Network {
	return &dns.Network{
		ID: "n1", Name: "shop", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		Services: []dns.Service{{ID: "s1", Name: "web", VIPs: addrs("10.0.1.2")}},
		Endpoints: []dns.Endpoint{
			{Service: "s1", Active: true, Names: []string{"web.1.a"}, Addresses: addrs("10.0.1.3")},
			{Service: "s1", Active: true, Names: []string{"web.2.b"}, Addresses: addrs("10.0.1.4")},
		},
	}
}

func state(networks ...*dns.Network) dns.State {
	s := dns.State{Version: 1, Networks: map[string]*dns.Network{}}
	for _, n := range networks {
		s.Networks[n.ID] = n
	}
	return s
}

// asker is a container's client. Its sockets are opened in the container.
type asker struct{ path string }

// ask asks by udp or tcp.
func (a asker) ask(tb testing.TB, network, name string, kind uint16) *wire.Msg {
	tb.Helper()
	m := new(wire.Msg).SetQuestion(wire.Fqdn(name), kind)
	return a.send(tb, network, m)
}

func (a asker) send(tb testing.TB, network string, m *wire.Msg) *wire.Msg {
	tb.Helper()
	var reply *wire.Msg
	within(tb, a.path, func() error {
		c := &wire.Client{Net: network, Timeout: 10 * time.Second}
		var err error
		reply, _, err = c.Exchange(m, net.JoinHostPort(dns.Address, "53"))
		return err
	})
	return reply
}

func TestResolver_AnswersBesideAServerOfTheContainersOwn(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, dns.Client{ID: "c1", Namespace: ns, Networks: []string{"n1"}})
	within(t, ns, func() error {
		udp, err := net.ListenPacket("udp4", "0.0.0.0:53")
		if err != nil {
			return err
		}
		tcp, err := net.Listen("tcp4", "0.0.0.0:53")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = udp.Close(); _ = tcp.Close() })
		return nil
	})
	for _, network := range []string{"udp", "tcp"} {
		reply := asker{ns}.ask(t, network, "web", wire.TypeA)
		t.Log(reply)
	}
}
