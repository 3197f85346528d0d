// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/nft"
)

func onRoutes(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

func deleteTable(f nft.Family, name string) func() error {
	return func() error { return onFilter(func(c *nft.Conn) error { return c.Delete(f, name) }) }
}

// Whatever is taken away, Check finds it and makes it again. Inspect finds what
// is seen without touching it.
func TestMesh_Mends(t *testing.T) {
	w := newWorld(t, 2)
	n := w.nodes[0]
	client := w.lan.Machine(t)
	a := w.run(n, "a")
	w.publish(8080, "", 0, 80, a)
	w.set()
	path, _ := n.overlay.Namespace("ingress")
	removeLink := func(name string) func() error {
		return func() error {
			return onRoutes(func(h *netlink.Handle) error {
				l, err := h.LinkByName(name)
				if err != nil {
					return err
				}
				return h.LinkDel(l)
			})
		}
	}
	for _, damage := range []struct {
		name, where string
		do          func() error
		seen        bool
	}{
		{"the node's table", n.Path, deleteTable(nft.IPv4, "skep-mesh-"+n.config.Scope), true},
		{"the router's table", path, deleteTable(nft.IPv4, "skep-mesh"), true},
		{"the steering", path, deleteTable(nft.Bridge, "skep-mesh"), true},
		{"the balancer", path, deleteTable(nft.Inet, "skep-mesh-ports"), true},
		{"the leg", n.Path, removeLink("skm" + n.config.Scope), true},
		{"the leg's other end", path, removeLink("node0"), true},
		{"the leg's address", path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				l, err := h.LinkByName("node0")
				if err != nil {
					return err
				}
				return h.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: sandbox.AsSlice(), Mask: net.CIDRMask(inside.Bits(), 32)}})
			})
		}, false},
		{"the leg's place", n.Path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				l, err := h.LinkByName("skm" + n.config.Scope)
				if err != nil {
					return err
				}
				return h.LinkSetNoMaster(l)
			})
		}, false},
		{"the router's way out", path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				return h.RouteDel(&netlink.Route{Gw: n.config.BridgeGateway.AsSlice()})
			})
		}, false},
		{"the member's table", a.path, deleteTable(nft.IPv4, "skep-mesh"), true},
		{"the member's rule", a.path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				r := netlink.NewRule()
				r.Family, r.Table, r.Priority = unix.AF_INET, 100, 100
				r.Src = &net.IPNet{IP: a.address.AsSlice(), Mask: net.CIDRMask(32, 32)}
				return h.RuleDel(r)
			})
		}, false},
		{"the member's routes", a.path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				return h.RouteDel(&netlink.Route{Gw: gateway.AsSlice(), Table: 100})
			})
		}, false},
		{"the member's gateway", a.path, func() error {
			return onRoutes(func(h *netlink.Handle) error {
				l, err := h.LinkByName("eth1")
				if err != nil {
					return err
				}
				return h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: gateway.AsSlice()})
			})
		}, false},
	} {
		t.Run(damage.name, func(t *testing.T) {
			within(t, damage.where, damage.do)
			n.inspect(t, damage.seen)
			n.check(t, -1)
			n.check(t, 0)
			n.inspect(t, false)
			for _, proto := range protocols() {
				answers(t, client, proto, at(n.Address, 8080), itself, "a")
			}
		})
	}
}

// inspect fails if what it tells is not as expected, however often it is asked.
func (n *meshNode) inspect(tb testing.TB, faulty bool) {
	tb.Helper()
	for range 2 {
		n.Within(tb, func() error {
			faults, err := n.Inspect(tb.Context())
			if (len(faults) > 0) != faulty {
				tb.Errorf("got %q, want faults: %t", faults, faulty)
			}
			return err
		})
	}
}

// The network's namespace is removed, with all in it, and made again.
func TestMesh_FollowsTheNetworksNamespace(t *testing.T) {
	w := newWorld(t, 2)
	n := w.nodes[0]
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(w.nodes[1], "b"))
	w.set()
	answers(t, client, "tcp", at(n.Address, 8080), itself, "b")
	n.Within(t, func() error { return n.overlay.Set(t.Context(), nil) })
	w.setNode(n)
	answers(t, client, "tcp", at(n.Address, 8080), itself, "b")
	n.check(t, 0)
}

// A mesh that is taken down leaves nothing, gives its ports back, and can come
// again. So does one of a process that has found what another left, when the
// network goes, too.
func TestMesh_DestroyLeavesNothing(t *testing.T) {
	w := newWorld(t, 2)
	n := w.nodes[0]
	client := w.lan.Machine(t)
	w.publish(8080, "", 0, 80, w.run(n, "a"))
	for _, restarted := range []bool{false, true} {
		w.set()
		answers(t, client, "tcp", at(n.Address, 8080), itself, "a")
		if restarted {
			n.restart(t)
		}
		for range 2 {
			n.Within(t, func() error { return n.Destroy(t.Context()) })
			if restarted {
				// It was never told which namespace is the network's.
				n.Within(t, func() error { return n.overlay.Set(t.Context(), nil) })
			}
			n.leavesNothing(t)
		}
		n.check(t, 0)
		n.Within(t, func() error {
			l, err := net.Listen("tcp4", ":8080")
			if err == nil {
				err = l.Close()
			}
			return err
		})
	}
}

// A container that has gone is not looked for for ever, and one that comes at
// its place is another.
func TestMesh_MembersEnd(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	a := w.member(n, "a")
	a.join(t, both(0, 80)...)
	if err := link.Remove(a.path); err != nil {
		t.Fatal(err)
	}
	n.check(t, 0)
	n.Within(t, func() error {
		if err := n.Join(t.Context(), a.wants()); err == nil {
			t.Error("joined a namespace that is gone")
		}
		return nil
	})
}

func TestMesh_Refuses(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	n.Within(t, func() error {
		for _, slot := range []int{0, -1, 1024} {
			s := w.state(n)
			if s.Slot = slot; n.Set(t.Context(), s) == nil {
				t.Errorf("took slot %d", slot)
			}
		}
		return nil
	})
}
