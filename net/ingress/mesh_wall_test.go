// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/ingress"
)

// route leads an address by another, in a place.
func route(tb testing.TB, from place, to, by netip.Addr) {
	tb.Helper()
	from.Within(tb, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		dst := &netlink.Route{Dst: netlink.NewIPNet(to.AsSlice()), Gw: by.AsSlice()}
		return h.RouteReplace(dst)
	})
}

// On the ingress network a container is reached by the mesh only, and only at
// the ports that are published.
func TestMesh_WallsAroundMembers(t *testing.T) {
	w := newWorld(t, 2)
	a, other, far := w.run(w.nodes[0], "a"), w.member(w.nodes[0], "other"), w.member(w.nodes[1], "far")
	other.join(t)
	far.join(t)
	a.serve(t, 90)
	w.publish(8080, "", 0, 80, a)
	w.set()
	wire, _ := ingress.WirePort(0, w.nodes[0].slot)
	guest := w.nodes[0].guest(t, "guest")
	route(t, guest, a.address, a.near)
	for _, port := range []uint16{80, 90, wire} {
		for _, proto := range protocols() {
			refused(t, other, proto, at(a.address, port))
			refused(t, far, proto, at(a.address, port))
			// By the device that is not the mesh's.
			refused(t, guest, proto, at(a.address, port))
		}
	}
	hearsOnly(t, a, guest)
	for _, port := range []uint16{80, 90} {
		answers(t, a, "tcp", at(a.address, port), itself, "a")            // it may ask itself
		answers(t, guest, "tcp", at(a.near, port), only(guest.near), "a") // the bridge is no part of the mesh
	}
}

// hearsOnly fails if a task hears what is sent round the mesh to its address there,
// though it cannot answer.
func hearsOnly(tb testing.TB, a, from *task) {
	tb.Helper()
	var u net.PacketConn
	a.Within(tb, func() (err error) {
		u, err = net.ListenPacket("udp4", ":99")
		return err
	})
	defer func() { _ = u.Close() }()
	for _, to := range []netip.Addr{a.address, a.near} {
		if _, err := mustDial(tb, from, "udp", at(to, 99)).Write([]byte(to.String())); err != nil {
			tb.Fatal(err)
		}
	}
	if err := u.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, 100)
	if n, _, err := u.ReadFrom(b); err != nil || string(b[:n]) != a.near.String() {
		tb.Errorf("heard what was sent to %s: %v", b[:n], err)
	}
}

// Nobody uses a router to get elsewhere.
func TestMesh_WallsAroundRouters(t *testing.T) {
	w := newWorld(t, 2)
	outside := w.lan.Machine(t)
	server := &task{name: "outside", path: outside.Path}
	server.serve(t, 80)
	a, b := w.member(w.nodes[0], "a"), w.run(w.nodes[1], "b")
	a.join(t)
	guest := w.nodes[0].guest(t, "guest")
	guest.serve(t, 80)
	w.publish(8080, "", 0, 80, b)
	w.set()
	// From the network by its router: as if it had an ordinary gateway.
	a.Within(t, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName("eth1")
		if err != nil {
			return err
		}
		return h.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: gateway.AsSlice(), State: netlink.NUD_PERMANENT,
			HardwareAddr: ingress.RouterMAC(w.nodes[0].slot),
		})
	})
	for _, to := range []netip.Addr{outside.Address, guest.near, w.nodes[0].Address} {
		if c, err := dialWithin(t, a, at(a.address, 0), "tcp", at(to, 80), patience/8); err == nil {
			t.Errorf("reached %s by a router", to)
			_ = c.Close()
		}
	}
	// From the node's bridge and from other machines by the leg.
	route(t, guest, b.address, sandbox)
	refused(t, guest, "tcp", at(b.address, 80))
	route(t, outside, b.address, w.nodes[0].Address)
	route(t, w.nodes[0], b.address, sandbox)
	refused(t, outside, "tcp", at(b.address, 80))
}

// What is not on the mesh is not reached by it.
func TestMesh_OthersAreNotPublished(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	guest := w.nodes[1].guest(t, "guest")
	guest.serve(t, 80)
	guest.serve(t, 8080)
	w.publish(8080, "", 0, 80, w.run(w.nodes[0], "a"))
	w.set()
	for _, n := range w.nodes {
		for range 10 {
			answers(t, client, "tcp", at(n.Address, 8080), itself, "a")
		}
		for _, port := range []uint16{80, 8081} {
			_, err := dial(t, client, netip.AddrPort{}, "tcp", at(n.Address, port))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("port %d: want a refusal: %v", port, err)
			}
		}
	}
}

// Nobody listens: the client is told so, also by UDP and from another node.
func TestMesh_RefusalsComeThrough(t *testing.T) {
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	a := w.member(w.nodes[1], "a")
	a.join(t, both(0, 80)...)
	w.publish(8080, "", 0, 80, a)
	w.set()
	for _, n := range w.nodes {
		_, err := dial(t, client, netip.AddrPort{}, "tcp", at(n.Address, 8080))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("tcp by %s: want a refusal: %v", n.Address, err)
		}
		c := mustDial(t, client, "udp", at(n.Address, 8080))
		if _, _, err := ask(c); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("udp by %s: want a refusal: %v", n.Address, err)
		}
	}
}
