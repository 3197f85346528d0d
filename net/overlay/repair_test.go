// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/nft"
	"skep/net/overlay"
)

// damage is what others may do to a network's namespace; the thread is in it.
func damage(tb testing.TB, port string, c2 *box) map[string]func() error {
	tb.Helper()
	entry := func(device string, e netlink.Neigh, do func(*netlink.Neigh) error) error {
		e.LinkIndex = mustLink(tb, device).Attrs().Index
		return do(&e)
	}
	neighbour := netlink.Neigh{IP: net.IP(c2.addrs()[0].AsSlice()), HardwareAddr: c2.MAC, State: netlink.NUD_PERMANENT}
	neighbour6 := netlink.Neigh{IP: net.IP(c2.addrs()[1].AsSlice()), HardwareAddr: c2.MAC, State: netlink.NUD_PERMANENT}
	forward := netlink.Neigh{Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: net.IP(c2.node.Address.AsSlice()), HardwareAddr: c2.MAC}
	elsewhere := forward
	elsewhere.IP = net.IPv4(192, 0, 2, 1)
	return map[string]func() error{
		"tunnel deleted":       func() error { return netlink.LinkDel(mustLink(tb, "vxlan0")) },
		"bridge deleted":       func() error { return netlink.LinkDel(mustLink(tb, "br0")) },
		"tunnel not on bridge": func() error { return netlink.LinkSetNoMaster(mustLink(tb, "vxlan0")) },
		"port not on bridge":   func() error { return netlink.LinkSetNoMaster(mustLink(tb, port)) },
		"port deleted":         func() error { return netlink.LinkDel(mustLink(tb, port)) },
		"port down":            func() error { return netlink.LinkSetDown(mustLink(tb, port)) },
		"tunnel down":          func() error { return netlink.LinkSetDown(mustLink(tb, "vxlan0")) },
		"bridge down":          func() error { return netlink.LinkSetDown(mustLink(tb, "br0")) },
		"port floods":          func() error { return netlink.LinkSetFlood(mustLink(tb, port), true) },
		"tunnel learns":        func() error { return netlink.LinkSetLearning(mustLink(tb, "vxlan0"), true) },
		"small tunnel":         func() error { return netlink.LinkSetMTU(mustLink(tb, "vxlan0"), 1000) },
		"small bridge":         func() error { return netlink.LinkSetMTU(mustLink(tb, "br0"), 1300) },
		"small port":           func() error { return netlink.LinkSetMTU(mustLink(tb, port), 1300) },
		"address on the bridge": func() error {
			return netlink.AddrAdd(mustLink(tb, "br0"), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 9, 1), Mask: net.CIDRMask(24, 32)}})
		},
		"neighbour deleted":  func() error { return entry("vxlan0", neighbour, netlink.NeighDel) },
		"neighbour6 deleted": func() error { return entry("vxlan0", neighbour6, netlink.NeighDel) },
		"forward deleted":    func() error { return entry("vxlan0", forward, netlink.NeighDel) },
		"forward elsewhere":  func() error { return entry("vxlan0", elsewhere, netlink.NeighSet) },
		"nobody's neighbour": func() error {
			n := neighbour
			n.IP = net.IPv4(10, 0, 9, 99)
			return entry("vxlan0", n, netlink.NeighSet)
		},
		"nobody's forward": func() error {
			n := forward
			n.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 9}
			return entry("vxlan0", n, netlink.NeighSet)
		},
		"station forgotten": func() error {
			return entry(port, netlink.Neigh{Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: overlay.MAC([]netip.Addr{netip.MustParseAddr("10.0.9.5")})}, netlink.NeighDel)
		},
		"another tunnel": func() error {
			if err := netlink.LinkDel(mustLink(tb, "vxlan0")); err != nil {
				return err
			}
			return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", TxQLen: -1}, VxlanId: 7, Port: 4789, Learning: true})
		},
		"table deleted": func() error { return filter(func(c *nft.Conn) error { return c.Delete(nft.Bridge, "skep-abcdef") }) },
		"table emptied": func() error {
			return filter(func(c *nft.Conn) error { return c.Replace(nft.Table{Family: nft.Bridge, Name: "skep-abcdef"}) })
		},
		"a port of no one": func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p00000000", TxQLen: -1, MasterIndex: mustLink(tb, "br0").Attrs().Index}, PeerName: "x", PeerTxQLen: -1})
		},
	}
}

func filter(f func(*nft.Conn) error) error {
	c, err := nft.Open()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return f(c)
}

// portOf is the port of the only container on a network of the node.
func portOf(tb testing.TB, path string) string {
	tb.Helper()
	var port string
	if err := link.Within(path, func() error {
		ifs, err := net.Interfaces()
		for _, i := range ifs {
			if i.Name[0] == 'p' {
				port = i.Name
			}
		}
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	return port
}

func TestCheck_MendsWhatOthersBreak(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	serve(t, c2)
	serve(t, c1)
	path, _ := n1.Namespace(webID)
	want, err := n1.Inspect(t.Context(), webID)
	if err != nil {
		t.Fatal(err)
	}
	repaired := n1.Repaired()
	for name, do := range damage(t, portOf(t, path), c2) {
		t.Run(name, func(t *testing.T) {
			if err := link.Within(path, do); err != nil {
				t.Fatal(err)
			}
			broken, err := n1.Inspect(t.Context(), webID)
			if err != nil || len(broken.Missing)+len(broken.Superfluous)+len(broken.Faults) == 0 {
				t.Errorf("nothing is seen to be broken: %v\n%s", err, broken.Text)
			}
			n, err := n1.Check(t.Context())
			if err != nil || n == 0 {
				t.Errorf("mended %d, %v", n, err)
			}
			if repaired += uint64(n); n1.Repaired() != repaired {
				t.Errorf("counted %d, want %d", n1.Repaired(), repaired)
			}
			if got, err := n1.Inspect(t.Context(), webID); err != nil || got.Text != want.Text {
				t.Errorf("not as it was: %v\n%s", err, got.Text)
			}
			for _, a := range c2.addrs() {
				reach(t, c1, "tcp", a, 10000)
			}
			reach(t, c2, "tcp", c1.addrs()[0], 10000)
			if n, err := n1.Check(t.Context()); n != 0 || err != nil {
				t.Errorf("again: mended %d, %v", n, err)
			}
		})
	}
}

func TestCheck_MendsANamespaceThatIsGone(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	serve(t, c2)
	path, _ := n1.Namespace(webID)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if n, err := n1.Check(t.Context()); err != nil || n == 0 {
		t.Errorf("mended %d, %v", n, err)
	}
	n1.right(t, webID)
	reach(t, c1, "tcp", c2.addrs()[0], 10000)
}

// A container that has ended, of which nobody has said so, is no fault.
func TestCheck_LeavesContainersThatAreGone(t *testing.T) {
	n1, _, c1, _ := pair(t)
	path, _ := n1.Namespace(webID)
	port := portOf(t, path)
	if err := link.Remove(c1.Namespace); err != nil {
		t.Fatal(err)
	}
	// The kernel removes the pair with the namespace, after a moment.
	if err := link.Within(path, func() error {
		if l, err := netlink.LinkByName(port); err == nil {
			_ = netlink.LinkDel(l)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n, err := n1.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("mended %d, %v", n, err)
	}
	if err := n1.Detach(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	n1.right(t, webID)
}
