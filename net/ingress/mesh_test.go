// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skep/net/ingress"
)

func protocols() []string { return []string{"tcp", "udp"} }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// answers asks until each of these has answered, and checks whom they saw.
func answers(tb testing.TB, from place, proto string, to netip.AddrPort, who func(own netip.AddrPort) netip.Addr, names ...string) {
	tb.Helper()
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	for range 200 {
		name, seen, own, err := get(tb, from, proto, to)
		if err != nil {
			tb.Errorf("%s to %s: %v", proto, to, err)
			return
		}
		if want := who(own); seen.Addr() != want {
			tb.Errorf("%s to %s: %s saw %s, want %s", proto, to, name, seen, want)
			return
		}
		if delete(missing, name); len(missing) == 0 {
			return
		}
	}
	tb.Errorf("%s to %s: never answered: %v", proto, to, missing)
}

func itself(own netip.AddrPort) netip.Addr { return own.Addr() }

func only(a netip.Addr) func(netip.AddrPort) netip.Addr {
	return func(netip.AddrPort) netip.Addr { return a }
}

// refused fails if somebody answers.
func refused(tb testing.TB, from place, proto string, to netip.AddrPort) {
	tb.Helper()
	c, err := dialWithin(tb, from, netip.AddrPort{}, proto, to, patience/8)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	if name, _, err := askWith(c, "hello\n", patience/8); err == nil {
		tb.Errorf("%s to %s: %s answered", proto, to, name)
	}
}

// Every node answers on each of its addresses, whether it has a task or not, and
// the task sees who asks, address and port.
func TestMesh_EveryNodeAnswersForAll(t *testing.T) {
	w := newWorld(t, 3)
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"), w.run(w.nodes[1], "b"))
	w.set()
	for _, n := range w.nodes {
		for _, addr := range []netip.Addr{n.Address, n.second} {
			for _, proto := range protocols() {
				answers(t, client, proto, at(addr, 8080), itself, "a", "b")
				_, seen, own, err := get(t, client, proto, at(addr, 8080))
				if err != nil || seen != own {
					t.Errorf("%s to %s: seen as %s, is %s: %v", proto, addr, seen, own, err)
				}
			}
		}
	}
}

func TestMesh_NodesAskThemselvesAndOthers(t *testing.T) {
	w := newWorld(t, 3)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"), w.run(w.nodes[1], "b"))
	w.set()
	loopback := netip.MustParseAddr("127.0.0.1")
	for i, n := range w.nodes {
		if i == 1 {
			n.alone(t)
		}
		for _, proto := range protocols() {
			answers(t, n, proto, at(loopback, 8080), only(ingress.RouterAddress(n.slot)), "a", "b")
			for _, o := range w.nodes {
				answers(t, n, proto, at(o.Address, 8080), itself, "a", "b")
				answers(t, n, proto, at(o.second, 8080), itself, "a", "b")
			}
		}
	}
}

// Containers reach the port by their node and by others; a task also itself.
func TestMesh_ContainersAsk(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.run(w.nodes[0], "a"), w.run(w.nodes[1], "b")
	w.publish(8080, "", 0, 80, a, b)
	w.set()
	for i, from := range []*task{w.nodes[0].guest(t, "guest"), a, b} {
		t.Run(from.name, func(t *testing.T) {
			home, other := w.nodes[i/2], w.nodes[1-i/2]
			for _, proto := range protocols() {
				posed := only(ingress.RouterAddress(home.slot))
				answers(t, from, proto, at(home.Address, 8080), posed, "a", "b")
				answers(t, from, proto, at(home.config.BridgeGateway, 8080), posed, "a", "b")
				answers(t, from, proto, at(other.Address, 8080), only(home.Address), "a", "b")
			}
		})
	}
	w.nodes[0].alone(t)
	answers(t, a, "tcp", at(w.nodes[0].Address, 8080), only(ingress.RouterAddress(w.nodes[0].slot)), "a", "b")
}

// One address and port of a client, by all nodes at once, to one task.
func TestMesh_ManyWaysOfOneClientToOneTask(t *testing.T) {
	w := newWorld(t, 3)
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"))
	w.set()
	for round := range 30 {
		local := at(client.Address, uint16(20000+round))
		for _, proto := range protocols() {
			var cs []net.Conn
			for _, n := range w.nodes {
				c, err := dial(t, client, local, proto, at(n.Address, 8080))
				if err != nil {
					t.Fatalf("round %d: %s by %s: %v", round, proto, n.Address, err)
				}
				cs = append(cs, c)
			}
			ports := map[netip.AddrPort]bool{}
			for _, n := range []int{0, 1, 2, 0} {
				name, seen, err := ask(cs[n])
				if err != nil || name != "a" || seen.Addr() != client.Address {
					t.Fatalf("round %d: %s by node %d: %s saw %s: %v", round, proto, n, name, seen, err)
				}
				ports[seen] = true
			}
			if len(ports) != 3 || !ports[local] {
				t.Errorf("round %d: %s: seen as %v, is %s", round, proto, ports, local)
			}
			for _, c := range cs {
				_ = c.Close()
			}
		}
	}
}

// reuse lets one address and port have connections to several others.
func reuse(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

// What a program binds to does not matter: every address (as all other tests
// do, without asking which address was asked) or the network's.
func TestMesh_UDPServers(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	bound := w.member(w.nodes[1], "bound")
	bound.join(t, both(0, 53)...)
	bound.serveAt(t, at(bound.address, 53).String())
	connected := w.member(w.nodes[1], "connected")
	connected.join(t, both(0, 53)...)
	connected.serveConnected(t, at(connected.address, 53))
	w.publish(53, "", 0, 53, bound)
	w.publish(54, "", 0, 53, connected)
	w.publish(55, ingress.SNAT, 0, 53, bound)
	w.set()
	for _, n := range w.nodes {
		answers(t, client, "udp", at(n.Address, 53), itself, "bound")
		answers(t, client, "udp", at(n.Address, 54), itself, "connected")
		answers(t, client, "udp", at(n.Address, 55), only(ingress.RouterAddress(n.slot)), "bound")
	}
}

// serveConnected answers each sender by a socket that is connected to it.
func (t *task) serveConnected(tb testing.TB, local netip.AddrPort) {
	tb.Helper()
	var u net.PacketConn
	t.Within(tb, func() (err error) {
		l := net.ListenConfig{Control: reuse}
		u, err = l.ListenPacket(tb.Context(), "udp4", local.String())
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			c, err := dial(tb, t, local, "udp", netip.MustParseAddrPort(from.String()))
			if err == nil {
				_, _ = fmt.Fprintf(c, "%s %s\n", t.name, from)
				_ = c.Close()
			}
		}
	}()
	tb.Cleanup(func() {
		_ = u.Close()
		<-done
	})
}

// A datagram that is in pieces on the way comes through, and so does the answer.
func TestMesh_LargeDatagrams(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"))
	w.set()
	for _, n := range w.nodes {
		for _, size := range []int{1400, 1473, 4000, 30000} {
			c, err := dial(t, client, netip.AddrPort{}, "udp", at(n.Address, 8080))
			if err != nil {
				t.Fatal(err)
			}
			if name, _, err := askWith(c, string(make([]byte, size)), patience); err != nil {
				t.Errorf("%d bytes by %s: %s, %v", size, n.Address, name, err)
			}
			_ = c.Close()
		}
	}
}
