// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/net/balance"
	"skep/net/kernel"
	"skep/net/link/umltest"
	"skep/net/link/vmtest"
)

// The suite is what every mode promises. It is run for each that the kernel has.
func TestSuite(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(string(mode), func(t *testing.T) { suite(t, mode) })
	}
}

// TestInUML shows IPVS where the machine's own kernel has none.
func TestInUML(t *testing.T) {
	umltest.Run(t, "TestSuite|TestIPVS", "veth", "bridge", "ip_vs_rr", "nf_conntrack_netlink")
}

// TestInVM shows it with nftables beside it.
func TestInVM(t *testing.T) {
	vmtest.Run(t, vmtest.Machine{
		Tests: "TestSuite|TestIPVS", Skip: "TestSuite/.*/(forwarded|output_(spreads|takes|keeps|changes|leads))",
		Modules: kernel.Modules(), Programs: []string{"ipvsadm"},
	})
}

func modes(tb testing.TB) []balance.Mode {
	tb.Helper()
	auto, _, err := balance.Probe(tb.Context())
	try(tb, err)
	switch {
	case umltest.Inside(), vmtest.Inside(): // the first has no nftables for IPv4
		return []balance.Mode{balance.IPVS}
	case auto == balance.IPVS:
		return []balance.Mode{balance.IPVS, balance.NFT}
	}
	return []balance.Mode{balance.NFT}
}

// silent reports whether a service without live backends says nothing.
func (w *world) silent(tb testing.TB) bool {
	tb.Helper()
	err := balance.NoBeside()
	if w.Mode() == balance.IPVS && err != nil {
		tb.Logf("nftables cannot stand beside IPVS here: services without backends refuse, and none is for all ports: %v", err)
		return false
	}
	return true
}

// place is a way to a service.
type place struct {
	name  string
	where balance.Where
	v4    string
	v6    string
}

func places() []place {
	return []place{
		{"output", balance.Output, vip4, vip6},
		{"forwarded", balance.Forwarded, node4, node6},
	}
}

func suite(t *testing.T, mode balance.Mode) {
	for _, p := range places() {
		run := func(name string, f func(*testing.T, *world, place)) {
			t.Run(p.name+" "+name, func(t *testing.T) {
				w := newWorld(t, mode, p.where, 5)
				for _, h := range w.backends {
					h.serve(t, 80, 8080)
				}
				f(t, w, p)
			})
		}
		run("spreads evenly", spreads)
		run("keeps sources and translates ports", translates)
		run("drains", drains)
		run("cuts what is removed", cuts)
		run("leads UDP on", leadsUDP)
		run("is silent without backends", silent)
		run("changes at once", changesAtOnce)
		run("serves all ports", servesAllPorts)
		run("serves who asks", servesWhoAsks)
		run("serves any address", servesAnyAddress)
		run("keeps idle connections", keepsIdle)
		run("goes on without its process", restarts)
		run("repairs", repairs)
		run("leaves nothing", leavesNothing)
		run("takes many services", takesMany)
	}
}

// to is a service at an address with backends by number; a negative one, less
// one, is draining.
func (w *world) to(at, proto string, port uint16, backends ...int) balance.Service {
	s := service(at + "/" + proto)
	for _, i := range backends {
		h := w.backends[max(i, -i-1)]
		b := balance.Backend{Address: h.v4, Port: port, Draining: i < 0}
		if s.Address.Is6() {
			b.Address = h.v6
		}
		s.Backends = append(s.Backends, b)
	}
	return s
}

func at(addr string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
}

func spreads(t *testing.T, w *world, p place) {
	const each = 60
	for _, addr := range []string{p.v4, p.v6} {
		w.set(t, w.to(at(addr, 80), "tcp", 0, 0, 1, 2, 3, 4))
		n := map[string]int{}
		for range each * len(w.backends) {
			n[w.who(t, "tcp", at(addr, 80))[0]]++
		}
		chi := 0.0
		for _, h := range w.backends {
			d := float64(n[h.name] - each)
			chi += d * d / each
		}
		t.Logf("%v: χ² %.1f", n, chi)
		// Four degrees of freedom: more happens once in a million.
		if chi > 33.4 {
			t.Errorf("not even: %v, χ² %.1f", n, chi)
		}
	}
}

func translates(t *testing.T, w *world, p place) {
	w.set(t,
		w.to(at(p.v4, 8000), "tcp", 80, 0), w.to(at(p.v4, 8000), "udp", 8080, 1), w.to(at(p.v4, 8080), "tcp", 0, 2),
		w.to(at(p.v6, 8000), "tcp", 80, 3), w.to(at(p.v6, 8000), "udp", 8080, 4))
	for _, c := range []struct {
		network, addr string
		port          uint16
		want          string
	}{
		{"tcp", p.v4, 8000, "b0 80"},
		{"udp", p.v4, 8000, "b1 8080"},
		{"tcp", p.v4, 8080, "b2 8080"},
		{"tcp", p.v6, 8000, "b3 80"},
		{"udp", p.v6, 8000, "b4 8080"},
	} {
		conn := w.dial(t, c.network, at(c.addr, c.port))
		got := asked(t, conn)
		if want := c.want + " " + conn.LocalAddr().String(); fmt.Sprint(got[0], " ", got[1], " ", got[2]) != want {
			t.Errorf("%s %s %d: got %v, want %s", c.network, c.addr, c.port, got, want)
		}
	}
}

func drains(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0, 1), w.to(at(p.v4, 8080), "udp", 0, 0))
	old := w.dial(t, "tcp", at(p.v4, 80))
	for asked(t, old)[0] != "b0" {
		old = w.dial(t, "tcp", at(p.v4, 80))
	}
	udp := w.dial(t, "udp", at(p.v4, 8080))
	asked(t, udp)
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, ^0, 1), w.to(at(p.v4, 8080), "udp", 0, ^0, 1))
	for range 20 {
		if got := w.who(t, "tcp", at(p.v4, 80))[0]; got != "b1" {
			t.Fatalf("new connection came to %s, which drains", got)
		}
		if got := w.who(t, "udp", at(p.v4, 8080))[0]; got != "b1" {
			t.Fatalf("new flow came to %s, which drains", got)
		}
	}
	if got := asked(t, old)[0]; got != "b0" {
		t.Errorf("old connection is answered by %s", got)
	}
	if got := asked(t, udp)[0]; got != "b0" {
		t.Errorf("old flow is answered by %s", got)
	}
}

func cuts(t *testing.T, w *world, p place) {
	for _, addr := range []string{p.v4, p.v6} {
		w.set(t, w.to(at(addr, 80), "tcp", 0, 0))
		gone := w.dial(t, "tcp", at(addr, 80))
		asked(t, gone)
		w.set(t, w.to(at(addr, 80), "tcp", 0, ^0, 1))
		stays := w.dial(t, "tcp", at(addr, 80))
		asked(t, stays)
		w.set(t, w.to(at(addr, 80), "tcp", 0, 1))
		if words, err := ask(gone, 10*time.Second); !cutOff(err) {
			t.Errorf("%s: a connection to a removed backend: %v, %v", addr, words, err)
		}
		if got := asked(t, stays)[0]; got != "b1" {
			t.Errorf("%s: the other connection is answered by %s", addr, got)
		}
	}
}

func leadsUDP(t *testing.T, w *world, p place) {
	for _, addr := range []string{p.v4, p.v6} {
		w.set(t, w.to(at(addr, 80), "udp", 0, 0))
		c := w.dial(t, "udp", at(addr, 80))
		asked(t, c)
		w.set(t, w.to(at(addr, 80), "udp", 0, 1))
		words, err := ask(c, 10*time.Second)
		if err != nil || words[0] != "b1" {
			t.Errorf("%s: the next packet: %v, %v", addr, words, err)
		}
	}
}

func silent(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0))
	old := w.dial(t, "tcp", at(p.v4, 80))
	asked(t, old)
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, ^0))
	_, err := dial(w.from, "tcp", at(p.v4, 80), 300*time.Millisecond)
	if !w.silent(t) {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connect to a service that drains: %v", err)
		}
		asked(t, old)
		return
	}
	if !timedOut(err) {
		t.Errorf("connect to a service that drains: %v", err)
	}
	asked(t, old)
	w.set(t, w.to(at(p.v4, 80), "tcp", 0))
	if words, err := ask(old, 10*time.Second); !cutOff(err) {
		t.Errorf("a connection to the last backend: %v, %v", words, err)
	}
	// One who waits finds the next.
	type result struct {
		who []string
		err error
	}
	found := make(chan result, 1)
	// Ends with the dialling.
	go func() {
		c, err := dial(w.from, "tcp", at(p.v4, 80), 10*time.Second)
		if err != nil {
			found <- result{nil, err}
			return
		}
		defer func() { _ = c.Close() }()
		who, err := ask(c, time.Second)
		found <- result{who, err}
	}()
	select {
	case r := <-found:
		t.Fatalf("connect without a backend: %v", r)
	case <-time.After(200 * time.Millisecond):
	}
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 3))
	if r := <-found; r.err != nil || r.who[0] != "b3" {
		t.Errorf("connect when there is a backend again: %v", r)
	}
}

func servesAllPorts(t *testing.T, w *world, p place) {
	for _, addr := range []string{p.v4, p.v6} {
		all := w.to(addr, "", 0, 0)
		special := w.to(at(addr, 8080), "tcp", 0, 1)
		err := w.Set(t.Context(), []balance.Service{all, special})
		if !w.silent(t) {
			if err == nil || !strings.Contains(err.Error(), "for all ports IPVS needs the packet filter, which this kernel has not") {
				t.Errorf("set: %v", err)
			}
			continue
		}
		try(t, err)
		for _, c := range []struct {
			network string
			port    uint16
			want    string
		}{{"tcp", 80, "b0 80"}, {"udp", 80, "b0 80"}, {"udp", 8080, "b0 8080"}, {"tcp", 8080, "b1 8080"}} {
			got := w.who(t, c.network, at(addr, c.port))
			if got[0]+" "+got[1] != c.want {
				t.Errorf("%s %s %d: got %v, want %s", addr, c.network, c.port, got, c.want)
			}
		}
		old := w.dial(t, "tcp", at(addr, 80))
		asked(t, old)
		w.set(t, w.to(addr, "", 0, ^0))
		asked(t, old)
		if _, err := dial(w.from, "tcp", at(addr, 80), 300*time.Millisecond); !timedOut(err) {
			t.Errorf("connect to a service that drains: %v", err)
		}
		w.set(t, w.to(addr, "", 0, 1))
		if words, err := ask(old, 10*time.Second); !cutOff(err) {
			t.Errorf("a connection to a removed backend: %v, %v", words, err)
		}
	}
}

// A backend asks its own service, and is the one that answers.
func servesWhoAsks(t *testing.T, w *world, p place) {
	if p.where != balance.Output {
		t.Skip("nobody asks by a device for what is behind it")
	}
	if !w.silent(t) {
		t.Skip("nor is anybody led to itself")
	}
	w.node.serve(t, 80)
	self := len(w.backends)
	w.backends = append(w.backends, w.node)
	for _, addr := range []string{p.v4, p.v6} {
		for _, proto := range []string{"tcp", "udp"} {
			for _, s := range []balance.Service{w.to(at(addr, 80), proto, 0, self), w.to(addr, "", 0, self)} {
				w.set(t, s)
				if got := w.who(t, proto, at(addr, 80)); got[0] != w.node.name {
					t.Errorf("%s at %s, port %d: got %v", proto, addr, s.Port, got)
				}
			}
		}
	}
}

func servesAnyAddress(t *testing.T, w *world, p place) {
	s := []balance.Service{
		w.to("0.0.0.0:80", "tcp", 8080, 0), w.to("0.0.0.0:80", "udp", 8080, 1), w.to("[::]:80", "tcp", 8080, 2),
		w.to(at(node4, 8080), "tcp", 0, 3),
	}
	err := w.Set(t.Context(), s)
	if p.where == balance.Output || w.Mode() == balance.IPVS {
		if err == nil || !strings.Contains(err.Error(), "any address") {
			t.Errorf("set: %v", err)
		}
		return
	}
	try(t, err)
	for _, addr := range []string{node4, w.node.v4.String()} {
		if got := w.who(t, "tcp", at(addr, 80)); got[0] != "b0" || got[1] != "8080" {
			t.Errorf("tcp %s: %v", addr, got)
		}
		if got := w.who(t, "udp", at(addr, 80)); got[0] != "b1" || got[1] != "8080" {
			t.Errorf("udp %s: %v", addr, got)
		}
	}
	if got := w.who(t, "tcp", at(node6, 80)); got[0] != "b2" {
		t.Errorf("%s: %v", node6, got)
	}
	if got := w.who(t, "tcp", at(node4, 8080)); got[0] != "b3" {
		t.Errorf("%s: %v", node4, got)
	}
	// What only passes by is no business of the balancer.
	if got := w.who(t, "tcp", at(w.backends[4].v4.String(), 80)); got[0] != "b4" || got[1] != "80" {
		t.Errorf("passing by: %v", got)
	}
	old := w.dial(t, "tcp", at(node4, 80))
	asked(t, old)
	w.set(t, w.to("0.0.0.0:80", "tcp", 8080, 4))
	if words, err := ask(old, 10*time.Second); !cutOff(err) {
		t.Errorf("a connection to a removed backend: %v, %v", words, err)
	}
}

func keepsIdle(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0))
	c := w.dial(t, "tcp", at(p.v4, 80))
	asked(t, c)
	if d := w.idle(t); d < 2*time.Hour {
		t.Errorf("an idle connection is forgotten after %v", d)
	}
}

func changesAtOnce(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0, 1))
	failed := make(chan error, 1)
	// Ends after so many connections.
	go func() {
		defer close(failed)
		for range 100 {
			c, err := dial(w.from, "tcp", at(p.v4, 80), 10*time.Second)
			if err != nil {
				failed <- err
				return
			}
			_ = c.Close()
		}
	}()
	for n := 0; ; n++ {
		select {
		case err := <-failed:
			if err != nil {
				t.Errorf("connect while the backends change: %v", err)
			}
			t.Logf("%d changes during 100 connections", n)
			return
		default:
		}
		w.set(t, w.to(at(p.v4, 80), "tcp", 0, 2, 3, ^0, ^1))
		w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0, 1, ^2, ^3))
	}
}

func restarts(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0), w.to(at(p.v4, 8080), "tcp", 0, 0))
	c80, c8080 := w.dial(t, "tcp", at(p.v4, 80)), w.dial(t, "tcp", at(p.v4, 8080))
	asked(t, c80)
	asked(t, c8080)
	try(t, w.Close())
	asked(t, c80)
	w.who(t, "tcp", at(p.v4, 80))
	w.open(t)
	asked(t, c80)
	// The new process knows nothing of the connections, but cuts the right ones.
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, ^0, 1), w.to(at(p.v4, 8080), "tcp", 0, 1))
	asked(t, c80)
	if words, err := ask(c8080, 10*time.Second); !cutOff(err) {
		t.Errorf("a connection to a removed backend: %v, %v", words, err)
	}
	if got := w.who(t, "tcp", at(p.v4, 80))[0]; got != "b1" {
		t.Errorf("a new connection came to %s", got)
	}
}

func repairs(t *testing.T, w *world, p place) {
	want := []balance.Service{w.to(at(p.v4, 80), "tcp", 0, 0), w.to(at(p.v6, 8080), "udp", 80, 1)}
	w.set(t, want...)
	check := func(want bool) {
		t.Helper()
		n, err := w.Check(t.Context())
		if err != nil || (n > 0) != want {
			t.Errorf("repaired %d, %v", n, err)
		}
	}
	check(false)
	for _, h := range harms(w) {
		t.Log(h.name)
		w.node.within(t, h.do)
		for range 2 { // looking changes nothing
			if n, err := w.Inspect(t.Context()); err != nil || n == 0 {
				t.Errorf("saw %d differences, %v", n, err)
			}
		}
		check(true)
		check(false)
		if n, err := w.Inspect(t.Context()); err != nil || n != 0 {
			t.Errorf("saw %d differences, %v", n, err)
		}
		if got := w.who(t, "tcp", at(p.v4, 80))[0]; got != "b0" {
			t.Errorf("repaired: answered by %s", got)
		}
		if got := w.who(t, "udp", at(p.v6, 8080))[0]; got != "b1" {
			t.Errorf("repaired: answered by %s", got)
		}
	}
}

func leavesNothing(t *testing.T, w *world, p place) {
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 0), w.to(at(p.v6, 80), "udp", 0, 0))
	try(t, w.Destroy(t.Context()))
	if left := w.left(t); left != "" {
		t.Errorf("left: %s", left)
	}
	try(t, w.Destroy(t.Context()))
	// It can be used again.
	w.set(t, w.to(at(p.v4, 80), "tcp", 0, 1))
	if got := w.who(t, "tcp", at(p.v4, 80))[0]; got != "b1" {
		t.Errorf("answered by %s", got)
	}
	try(t, w.Destroy(t.Context()))
}
