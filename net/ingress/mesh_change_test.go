// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/network"

	"skep/net/balance"
	"skep/net/ingress"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/nft"
)

func mustDial(tb testing.TB, from place, proto string, to netip.AddrPort) net.Conn {
	tb.Helper()
	c, err := dial(tb, from, netip.AddrPort{}, proto, to)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func mustAsk(tb testing.TB, c net.Conn, want string) {
	tb.Helper()
	name, _, err := ask(c)
	if err != nil || name != want {
		tb.Errorf("%s answered, want %s: %v", name, want, err)
	}
}

// A task that is drained keeps its connections and gets no others; one that is
// cut off loses them, and the clients hear of it.
func TestMesh_DrainAndCut(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	a, b := w.run(w.nodes[0], "a"), w.run(w.nodes[1], "b")
	w.publish(8080, "", 0, 80, a)
	w.set()
	old := map[string][]net.Conn{}
	for _, proto := range protocols() {
		for _, n := range w.nodes {
			c := mustDial(t, client, proto, at(n.Address, 8080))
			mustAsk(t, c, "a")
			old[proto] = append(old[proto], c)
		}
	}
	w.change(func(bs []ingress.MeshBackend) []ingress.MeshBackend {
		return append(bs, ingress.MeshBackend{Address: b.address, Target: 80})
	})
	w.drain(a)
	for _, n := range w.nodes {
		for range 10 {
			for _, proto := range protocols() {
				mustAsk(t, mustDial(t, client, proto, at(n.Address, 8080)), "b")
			}
		}
	}
	for _, c := range slices.Concat(old["tcp"], old["udp"]) {
		mustAsk(t, c, "a")
	}
	w.cut(a)
	for _, c := range old["tcp"] {
		if name, _, err := ask(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s answered, want a reset: %v", name, err)
		}
	}
	for _, c := range old["udp"] {
		mustAsk(t, c, "b")
	}
}

// A port without tasks is silent, so that clients try again; so is one whose
// only task is drained.
func TestMesh_NobodyServes(t *testing.T) {
	w := newWorld(t, 1)
	client := w.lan.Machine(t)
	a := w.run(w.nodes[0], "a")
	w.publish(8080, "", 0, 80)
	w.publish(8081, "", 0, 80, a)
	w.set()
	w.drain(a)
	for _, port := range []uint16{8080, 8081} {
		_, err := dialWithin(t, client, netip.AddrPort{}, "tcp", at(w.nodes[0].Address, port), patience/4)
		if failed := net.Error(nil); !errors.As(err, &failed) || !failed.Timeout() {
			t.Errorf("port %d: want silence: %v", port, err)
		}
		refused(t, client, "udp", at(w.nodes[0].Address, port))
	}
}

func TestMesh_SeveralPortsOfOneTarget(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	a := w.member(w.nodes[0], "a")
	a.join(t, slices.Concat(both(0, 80), both(1, 80), both(39, 81))...)
	a.serve(t, 80)
	a.serve(t, 81)
	w.publish(8080, "", 0, 80, a)
	w.publish(8081, "", 1, 80, a)
	w.publish(8082, "", 39, 81, a)
	ports := []uint16{8080, 8081, 8082}
	if mode() == balance.NFT { // IPVS takes the answers of two such ports for one's
		w.publish(8083, "", 0, 80, a)
		ports = append(ports, 8083)
	}
	w.set()
	for i, n := range w.nodes {
		for _, proto := range protocols() {
			local := at(client.Address, 30000+uint16(i))
			var cs []net.Conn
			for _, port := range ports {
				c, err := dial(t, client, local, proto, at(n.Address, port))
				if err != nil {
					t.Fatal(err)
				}
				cs = append(cs, c)
			}
			for _, c := range cs {
				name, seen, err := ask(c)
				if err != nil || name != "a" || seen.Addr() != client.Address {
					t.Errorf("%s by %s: %s saw %s: %v", proto, c.RemoteAddr(), name, seen, err)
				}
				_ = c.Close()
			}
		}
	}
}

// Clients are not told apart for a service that asks for it, and for one with
// too many ports; of that it is said.
func TestMesh_SNAT(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	a := w.member(w.nodes[0], "a")
	a.join(t, append(both(0, 80), both(40, 81)...)...)
	a.serve(t, 80)
	a.serve(t, 81)
	w.publish(8080, ingress.SNAT, 0, 80, a)
	w.publish(8081, "", 40, 81, a)
	w.publish(8082, ingress.Preserve, 0, 80, a)
	w.set()
	for _, n := range w.nodes {
		for _, proto := range protocols() {
			answers(t, client, proto, at(n.Address, 8080), only(ingress.RouterAddress(n.slot)), "a")
			answers(t, client, proto, at(n.Address, 8081), only(ingress.RouterAddress(n.slot)), "a")
			answers(t, client, proto, at(n.Address, 8082), itself, "a")
		}
		f := n.Fallbacks()
		if len(f) != 1 || !strings.Contains(f["service-8081"], "more than 40 ports") {
			t.Errorf("fallbacks: %v", f)
		}
	}
	w.published = w.published[4:]
	w.set()
	if f := w.nodes[0].Fallbacks(); len(f) != 0 {
		t.Errorf("fallbacks: %v", f)
	}
}

// What one node forgets does not concern the others.
func TestMesh_NodesKeepTrackByThemselves(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"))
	w.set()
	local := at(client.Address, 30000)
	var cs []net.Conn
	for _, n := range w.nodes {
		c, err := dial(t, client, local, "tcp", at(n.Address, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		mustAsk(t, c, "a")
		cs = append(cs, c)
	}
	path, _ := w.nodes[0].overlay.Namespace("ingress")
	for _, where := range []string{path, w.nodes[0].Path} {
		c, err := linktest.OpenIn(where)
		if err != nil {
			t.Fatal(err)
		}
		err = c.ForgetFlows(func(link.Flow) bool { return true })
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		mustAsk(t, cs[1], "a")
	}
}

// A port goes from one service to another, and comes back.
func TestMesh_PortsComeAndGo(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	a, b := w.run(w.nodes[0], "a"), w.run(w.nodes[1], "b")
	udp := map[*meshNode]net.Conn{}
	for _, n := range w.nodes {
		// It speaks to nobody: the kernel must not remember that.
		udp[n] = mustDial(t, client, "udp", at(n.Address, 8080))
		if _, err := udp[n].Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, who := range []*task{a, b, nil, a} {
		w.published = nil
		if who != nil {
			w.publish(8080, "", 0, 80, who)
		}
		w.set()
		for _, n := range w.nodes {
			if who == nil {
				_, err := dial(t, client, netip.AddrPort{}, "tcp", at(n.Address, 8080))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("want a refusal: %v", err)
				}
				continue
			}
			answers(t, client, "tcp", at(n.Address, 8080), itself, who.name)
			answers(t, client, "udp", at(n.Address, 8080), itself, who.name)
			if name, _, err := ask(udp[n]); err != nil || name != who.name {
				// An error of before may be told first.
				if name, _, err = ask(udp[n]); err != nil || name != who.name {
					t.Errorf("%s answered, want %s: %v", name, who.name, err)
				}
			}
		}
	}
}

// A program that has the port keeps it, and the mesh gets it afterwards; what
// the mesh has it keeps over a restart, whoever takes the port meanwhile.
func TestMesh_Conflicts(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	client := w.lan.Machine(t)
	take := func() (l net.Listener) {
		t.Helper()
		n.Within(t, func() (err error) {
			l, err = net.Listen("tcp4", ":8080")
			return err
		})
		return l
	}
	l := take()
	w.publish(8080, "", 0, 80, w.run(n, "a"))
	w.published = append(w.published, ingress.Published{Protocol: network.SCTP, Port: 8080, Service: "s"},
		ingress.Published{Protocol: network.UDP, Port: 8080, Service: "zzz"})
	w.set()
	reasons := func() string {
		var out []string
		for _, c := range n.Conflicts() {
			out = append(out, c.Service+": "+c.Reason)
		}
		return strings.Join(out, "\n")
	}
	want := "s: publish port 8080/sctp: only tcp and udp\nzzz: port 8080/udp is published by service service-8080"
	if got := reasons(); got != want+"\nservice-8080: Bind for 0.0.0.0:8080 failed: port is already allocated" {
		t.Errorf("conflicts:\n%s", got)
	}
	answers(t, client, "udp", at(n.Address, 8080), itself, "a")
	refused(t, client, "tcp", at(n.Address, 8080)) // the program does not accept
	_ = l.Close()
	n.check(t, 0)
	if got := reasons(); got != want {
		t.Errorf("conflicts:\n%s", got)
	}
	answers(t, client, "tcp", at(n.Address, 8080), itself, "a")

	c := mustDial(t, client, "tcp", at(n.Address, 8080))
	mustAsk(t, c, "a")
	n.restart(t)
	l = take()
	defer func() { _ = l.Close() }()
	w.set()
	mustAsk(t, c, "a")
	answers(t, client, "tcp", at(n.Address, 8080), itself, "a")
	if got := reasons(); !strings.Contains(got, "port is already allocated") {
		t.Errorf("conflicts:\n%s", got)
	}
}

// check runs Check and says how much it is to repair; -1 is some.
func (n *meshNode) check(tb testing.TB, want int) {
	tb.Helper()
	n.Within(tb, func() error {
		got, err := n.Check(tb.Context())
		if got != want && (want >= 0 || got == 0) {
			tb.Errorf("repaired %d, want %d", got, want)
		}
		return err
	})
}

// generations is how often the packet filter was changed, by namespace.
func (w *world) generations() map[string]uint32 {
	w.tb.Helper()
	out := map[string]uint32{}
	read := func(name, path string) {
		within(w.tb, path, func() error {
			return onFilter(func(c *nft.Conn) (err error) {
				out[name], err = c.Generation()
				return err
			})
		})
	}
	n := w.nodes[0]
	read("node", n.Path)
	path, _ := n.overlay.Namespace("ingress")
	read("ingress", path)
	for _, t := range w.tasks {
		read(t.name, t.path)
	}
	return out
}

func TestMesh_ChangesCostWhatTheyChange(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.run(w.nodes[0], "a"), w.run(w.nodes[0], "b")
	w.publish(8080, "", 0, 80, a)
	w.set()
	cost := func(what string, f func(), want map[string]uint32) {
		t.Helper()
		before := w.generations()
		f()
		for name, g := range w.generations() {
			if g-before[name] != want[name] {
				t.Errorf("%s: %d transactions at %s, want %d", what, g-before[name], name, want[name])
			}
		}
	}
	again := func() {
		w.set()
		a.join(t, both(0, 80)...)
		w.nodes[0].check(t, 0)
	}
	cost("the same again", again, nil)
	// The balancer does not know what an earlier process was told.
	cost("a restart", func() { w.nodes[0].restart(t); again() }, map[string]uint32{"ingress": 1})
	balancer := uint32(1)
	if mode() == balance.IPVS {
		balancer = 0
	}
	cost("another backend", func() {
		w.change(func(bs []ingress.MeshBackend) []ingress.MeshBackend {
			return append(bs, ingress.MeshBackend{Address: b.address, Target: 80})
		})
	}, map[string]uint32{"ingress": balancer})
	cost("a drained backend", func() { w.drain(a) }, map[string]uint32{"ingress": balancer})
	cost("another port", func() { w.publish(8081, "", 0, 80, a); w.set() }, map[string]uint32{"ingress": balancer, "node": 1})
}
