// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/link/umltest"
	"skep/net/overlay"
)

var update = flag.Bool("update", false, "write the golden texts")

// routed is the network web, on which the nodes themselves are hosts.
func routed(n *node, slot byte, peers ...overlay.Peer) *overlay.Network {
	w := web(n, peers...)
	w.Router = &overlay.Router{
		MAC: net.HardwareAddr{0x02, 0x53, 0x4b, 0, 0, slot},
		Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.0.9.1/24"), netip.MustParsePrefix("fd00:9::1/64"),
			netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 64, slot}), 32),
		},
	}
	return w
}

func TestInspect_Golden(t *testing.T) {
	for _, test := range []struct {
		name string
		of   func(n *node, peers ...overlay.Peer) *overlay.Network
	}{
		{"plain", web},
		{"router", func(n *node, peers ...overlay.Peer) *overlay.Network {
			router := overlay.Peer{MAC: net.HardwareAddr{0x02, 0x53, 0x4b, 0, 0, 9}, VTEP: netip.MustParseAddr("198.18.9.9")}
			return routed(n, 7, append(peers, router)...)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, linktest.NewSwitch(t))
			n.set(t, test.of(n))
			n.attach(t, "c1", webID, "10.0.9.5/24", "fd00:9::5/64")
			n.attach(t, "c2", webID, "10.0.9.6/24")
			six := []netip.Addr{netip.MustParseAddr("10.0.9.100"), netip.MustParseAddr("fd00:9::100")}
			n.set(t, test.of(n, overlay.Peer{Addresses: six, MAC: overlay.MAC(six), VTEP: netip.MustParseAddr("198.18.9.9")}))
			st, err := n.Inspect(t.Context(), webID)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(st.Text, n.Address.String(), "198.18.0.1")
			path := "testdata/" + test.name + ".txt"
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("the kernel has something else (-want +got):\n%s", d)
			}
		})
	}
}

// The node is a host on the network: it is reached and reaches all, and sends
// on what is for elsewhere.
func TestRouter(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	near := n1.attach(t, "near", webID, "10.0.9.7/24", "fd00:9::7/64")
	n1.set(t, routed(n1, 1, c2.peer()))
	n2.set(t, routed(n2, 2, c1.peer(), near.peer()))
	n1.right(t, webID)
	path, _ := n1.Namespace(webID)
	router := &box{overlay.Attachment{Namespace: path}, n1}
	for _, b := range []*box{c1, c2, near, router} {
		serve(t, b)
	}
	for _, a := range append(c1.addrs(), near.addrs()...) {
		reach(t, router, "tcp", a, 100_000)
	}
	for _, b := range []*box{c1, near} {
		reach(t, b, "tcp", netip.MustParseAddr("10.0.9.1"), 100_000)
		reach(t, b, "tcp", netip.MustParseAddr("fd00:9::1"), 100_000)
	}
	forwards(t, path)
	// A container of the other node is reached if its answers come back to this
	// one: to an address that only this node has.
	c2.Within(t, func() error {
		l := mustLink(t, "eth0")
		to := &net.IPNet{IP: net.IPv4(169, 254, 64, 1).To4(), Mask: net.CIDRMask(32, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK})
	})
	n2.set(t, routed(n2, 2, c1.peer(), near.peer(), overlay.Peer{
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.64.1")}, MAC: net.HardwareAddr{0x02, 0x53, 0x4b, 0, 0, 1}, VTEP: n1.Address,
	}))
	reach(t, c2, "tcp", netip.MustParseAddr("169.254.64.1"), 100_000)
	// It is a host no more.
	n1.set(t, web(n1, c2.peer()))
	n1.right(t, webID)
	unreachable(t, c1, netip.MustParseAddr("10.0.9.1"))
	reach(t, c1, "tcp", near.addrs()[0], 100)
}

func forwards(t *testing.T, path string) {
	t.Helper()
	if err := link.Within(path, func() error {
		for name, want := range map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/br0/rp_filter": "0", "ipv4/conf/all/rp_filter": "0",
			"ipv4/conf/br0/send_redirects": "0", "ipv4/conf/all/send_redirects": "0",
		} {
			b, err := os.ReadFile("/proc/sys/net/" + name)
			if err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s is %q, %v", name, b, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestOverlay_OverIPv6(t *testing.T) {
	sw := linktest.NewSwitch(t)
	n1, n2 := newNode(t, sw), newNode(t, sw)
	over := func(n *node, peers ...overlay.Peer) *overlay.Network {
		w := web(n, peers...)
		w.Local, w.MTU = n.Address6, 1430
		return w
	}
	n1.set(t, over(n1))
	n2.set(t, over(n2))
	c1 := n1.attach(t, "c1", webID, "10.0.9.5/24", "fd00:9::5/64")
	c2 := n2.attach(t, "c2", webID, "10.0.9.6/24", "fd00:9::6/64")
	p1, p2 := c1.peer(), c2.peer()
	p1.VTEP, p2.VTEP = n1.Address6, n2.Address6
	n1.set(t, over(n1, p2))
	n2.set(t, over(n2, p1))
	n1.right(t, webID)
	serve(t, c2)
	for _, a := range c2.addrs() {
		reach(t, c1, "tcp", a, 1<<20)
		reach(t, c1, "udp", a, 9000)
	}
	n1.restart(t)
	n1.set(t, over(n1, p2))
	n1.right(t, webID)
}

// An older kernel, with one processor and modules.
func TestInUML(t *testing.T) {
	if umltest.Inside() {
		t.Skip("is in user-mode Linux")
	}
	umltest.Run(t, "^(TestOverlay_.*|TestRouter|TestCheck_.*|TestOpen_FindsEverything.*)$", "vxlan", "veth", "bridge", "nf_tables")
}

func TestOverlay_OnlyIPv6(t *testing.T) {
	n1, n2, _, _ := pair(t)
	only := func(n *node, peers ...overlay.Peer) *overlay.Network {
		w := web(n, peers...)
		w.ID, w.VNI, w.Subnets = "only6", 4100, w.Subnets[1:]
		return w
	}
	n1.set(t, only(n1))
	n2.set(t, only(n2))
	c1 := n1.attach(t, "six1", "only6", "fd00:9::5/64")
	c2 := n2.attach(t, "six2", "only6", "fd00:9::6/64")
	n1.set(t, only(n1, c2.peer()))
	n2.set(t, only(n2, c1.peer()))
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 1<<20)
	n1.right(t, "only6")
}

// Packets as large as the device says pass whole: nobody needs to cut them.
func TestOverlay_LargestPacketPasses(t *testing.T) {
	_, _, c1, c2 := pair(t)
	serve(t, c2)
	for _, a := range c2.addrs() {
		header := 28
		if a.Is6() {
			header = 48
		}
		c, err := dial(t, c1, "udp", a, patience)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			if a.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := echo(c, 1450-header); err != nil {
			t.Errorf("%s: the largest: %v", a, err)
		}
		if _, err := c.Write(make([]byte, 1451-header)); err == nil {
			t.Errorf("%s: one byte more is sent", a)
		}
		_ = c.Close()
	}
}

func TestOverlay_SoftwareChecksums(t *testing.T) {
	sw := linktest.NewSwitch(t)
	n1, n2 := newNode(t, sw), newNode(t, sw)
	n1.config.SoftwareChecksums = true
	n1.restart(t)
	n1.set(t, web(n1))
	n2.set(t, web(n2))
	c1 := n1.attach(t, "c1", webID, "10.0.9.5/24")
	c2 := n2.attach(t, "c2", webID, "10.0.9.6/24")
	n1.set(t, web(n1, c2.peer()))
	n2.set(t, web(n2, c1.peer()))
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 1<<20)
	for b, want := range map[*box]bool{c1: false, c2: true} {
		// What leaves a device that computes checksums itself is left to it.
		if got := offloads(t, b); got != want {
			t.Errorf("%s leaves checksums to its device: %t, want %t", b.ID, got, want)
		}
	}
}

// offloads reports whether a container's device computes checksums of what is sent.
func offloads(t *testing.T, b *box) bool {
	t.Helper()
	var on bool
	b.Within(t, func() (err error) {
		on, err = txChecksums("eth0")
		return err
	})
	return on
}
