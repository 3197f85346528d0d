// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/overlay"
)

func TestSet_PeersComeAndGo(t *testing.T) {
	sw := linktest.NewSwitch(t)
	n1, n2, n3 := newNode(t, sw), newNode(t, sw), newNode(t, sw)
	var boxes []*box
	for i, n := range []*node{n1, n2, n3} {
		n.set(t, web(n))
		last := string(rune('5' + i))
		boxes = append(boxes, n.attach(t, "c"+last, webID, "10.0.9."+last+"/24", "fd00:9::"+last+"/64"))
		serve(t, boxes[i])
	}
	everyone := func(but int) []overlay.Peer {
		var out []overlay.Peer
		for i, b := range boxes {
			if i != but {
				out = append(out, b.peer())
			}
		}
		return out
	}
	n2.set(t, web(n2, everyone(1)...))
	n3.set(t, web(n3, everyone(2)...))
	check := func(known ...*box) {
		t.Helper()
		n1.right(t, webID)
		for _, b := range boxes[1:] {
			for _, a := range b.addrs() {
				if strings.Contains(strings.Join(ids(known), " "), b.ID) {
					reach(t, boxes[0], "tcp", a, 100)
				} else {
					unreachable(t, boxes[0], a)
				}
			}
		}
	}
	check()
	n1.set(t, web(n1, boxes[1].peer()))
	check(boxes[1])
	n1.set(t, web(n1, everyone(0)...))
	check(boxes[1], boxes[2])
	n1.set(t, web(n1, boxes[2].peer()))
	check(boxes[2])
	// One has moved to the other node, and another has its place.
	moved := boxes[1].peer()
	moved.VTEP = n3.Address
	n1.set(t, web(n1, moved, boxes[2].peer()))
	check(boxes[2])
	n1.set(t, web(n1, everyone(0)...))
	check(boxes[1], boxes[2])
	n1.set(t, web(n1))
	check()
}

func ids(boxes []*box) []string {
	var out []string
	for _, b := range boxes {
		out = append(out, b.ID)
	}
	return out
}

func TestSet_NetworksOfOneSubnetDoNotSeeEachOther(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	other := func(n *node, peers ...overlay.Peer) *overlay.Network {
		o := web(n, peers...)
		o.ID, o.VNI = "otherother00", 4098
		return o
	}
	n1.set(t, web(n1, c2.peer()), other(n1))
	n2.set(t, web(n2, c1.peer()), other(n2))
	o1 := n1.attach(t, "o1", "otherother00", "10.0.9.5/24")
	o2 := n2.attach(t, "o2", "otherother00", "10.0.9.66/24")
	o3 := n1.attach(t, "o3", "otherother00", "10.0.9.77/24")
	n1.set(t, web(n1, c2.peer()), other(n1, o2.peer()))
	n2.set(t, web(n2, c1.peer()), other(n2, o1.peer(), o3.peer()))
	for _, b := range []*box{c1, c2, o1, o2, o3} {
		serve(t, b)
	}
	reach(t, c1, "tcp", c2.addrs()[0], 100)
	reach(t, o1, "tcp", o2.addrs()[0], 100)
	reach(t, o1, "tcp", o3.addrs()[0], 100)
	unreachable(t, c1, o2.addrs()[0])
	unreachable(t, c1, o3.addrs()[0])
	unreachable(t, o1, c2.addrs()[0])
	unreachable(t, o3, c2.addrs()[0])
}

// kernelChanges counts what changes in a network's namespace while f runs:
// devices, neighbours, addresses.
func kernelChanges(t *testing.T, path string, f func()) int {
	t.Helper()
	var s *nl.NetlinkSocket
	if err := link.Within(path, func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f()
	// What comes before the test's own change was there before it.
	if err := link.Within(path, func() error {
		return netlink.LinkSetAlias(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 1}}, marked)
	}); err != nil {
		t.Fatal(err)
	}
	for count := 0; ; {
		msgs, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if bytes.Contains(m.Data, []byte(marked)) {
				if err := link.Within(path, func() error {
					return netlink.LinkSetAlias(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 1}}, "")
				}); err != nil {
					t.Fatal(err)
				}
				return count
			}
			count++
		}
	}
}

func TestSet_TwiceIsNoChange(t *testing.T) {
	n1, _, _, c2 := pair(t)
	path, ok := n1.Namespace(webID)
	if !ok {
		t.Fatal("the network has no namespace")
	}
	if n := kernelChanges(t, path, func() { n1.set(t, web(n1)) }); n == 0 {
		t.Error("the test does not see changes")
	}
	n1.set(t, web(n1, c2.peer()))
	same := web(n1, c2.peer())
	if n := kernelChanges(t, path, func() {
		for range 3 {
			n1.set(t, same)
			n1.set(t, web(n1, c2.peer()))
		}
	}); n != 0 {
		t.Errorf("%d changes in the kernel, want none", n)
	}
	n, err := n1.Check(t.Context())
	if err != nil || n != 0 || n1.Repaired() != 0 {
		t.Errorf("check: %d differences, %d repaired, %v", n, n1.Repaired(), err)
	}
}

func TestSet_NetworkThatIsNotListedIsGone(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	path, _ := n1.Namespace(webID)
	n1.set(t)
	if link.Pinned(path) {
		t.Error("the namespace is left")
	}
	if _, ok := n1.Namespace(webID); ok {
		t.Error("the network has a namespace")
	}
	if a := n1.Attached("c1"); len(a) > 0 {
		t.Errorf("still attached: %v", a)
	}
	c1.Within(t, func() error {
		if l, err := netlink.LinkByName("eth0"); err == nil {
			t.Errorf("the container still has %s", l.Attrs().Name)
		}
		return nil
	})
	err := n1.Attach(t.Context(), c1.Attachment)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), webID) {
		t.Errorf("attach to it: %v", err)
	}
	// At once again, and with the same number.
	n1.set(t, web(n1, c2.peer()))
	if err := n1.Attach(t.Context(), c1.Attachment); err != nil {
		t.Fatal(err)
	}
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 100)
}

func TestSet_OneThatIsWrongDoesNotKeepOthersFromBeingSet(t *testing.T) {
	sw := linktest.NewSwitch(t)
	n := newNode(t, sw)
	same, bad, v6 := web(n), web(n), web(n)
	same.ID = "same"
	bad.ID, bad.VNI, bad.MTU = "bad", 4099, 1
	v6.ID, v6.VNI = "v6", 4100
	v6.Peers = []overlay.Peer{
		{MAC: []byte{1}, VTEP: n.Address},
		{Addresses: []netip.Addr{netip.MustParseAddr("10.0.9.9")}, MAC: overlay.MAC([]netip.Addr{netip.MustParseAddr("10.0.9.9")}), VTEP: n.Address6},
		{Addresses: []netip.Addr{netip.MustParseAddr("10.0.9.10")}, MAC: overlay.MAC([]netip.Addr{netip.MustParseAddr("10.0.9.10")}), VTEP: netip.MustParseAddr("198.18.0.77")},
	}
	err := n.Set(t.Context(), []*overlay.Network{web(n), same, bad, v6})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"set network same: VNI 4097 on port 4789 is network " + webID + "'s", "set network bad: MTU 1", "set network v6: peer []", "peer [10.0.9.9]"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	n.right(t, webID)
	n.right(t, "v6")
	st, err := n.Inspect(t.Context(), "v6")
	if err != nil || st.Programmed != 2 {
		t.Errorf("the right peer is not programmed: %v\n%s", err, st.Text)
	}
}

// Another device of the machine has the number: that is said, and when it has
// gone the network is made.
func TestSet_NumberThatIsTaken(t *testing.T) {
	sw := linktest.NewSwitch(t)
	n := newNode(t, sw)
	n.Within(t, func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "foreign", TxQLen: -1}, VxlanId: 4097, Port: 4789})
	})
	err := n.Set(t.Context(), []*overlay.Network{web(n)})
	if err == nil || !strings.Contains(err.Error(), "add vxlan with VNI 4097 on port 4789: another device has this VNI and port") {
		t.Errorf("error: %v", err)
	}
	n.Within(t, func() error { return netlink.LinkDel(mustLink(t, "foreign")) })
	n.set(t, web(n))
	n.right(t, webID)
}

func TestSet_PortOfAnotherProgram(t *testing.T) {
	n := newNode(t, linktest.NewSwitch(t))
	var other net.PacketConn
	n.Within(t, func() (err error) {
		other, err = net.ListenPacket("udp4", ":4789")
		return err
	})
	err := n.Set(t.Context(), []*overlay.Network{web(n)})
	if err == nil || !strings.Contains(err.Error(), "UDP port 4789 is another program's") {
		t.Errorf("error: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	// Nobody needs to ask again.
	if n, err := n.Check(t.Context()); n == 0 || err != nil {
		t.Errorf("mended %d, %v", n, err)
	}
	n.right(t, webID)
}

func TestSet_NetworkChanges(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	serve(t, c2)
	changed := func(n *node, peer overlay.Peer) *overlay.Network {
		w := web(n, peer)
		w.VNI, w.Port, w.MTU = 5000, 5789, 1300
		return w
	}
	n1.set(t, changed(n1, c2.peer()))
	unreachable(t, c1, c2.addrs()[0])
	n2.set(t, changed(n2, c1.peer()))
	n1.right(t, webID)
	for _, a := range c2.addrs() {
		reach(t, c1, "tcp", a, 1<<20)
	}
	c1.Within(t, func() error {
		if mtu := mustLink(t, "eth0").Attrs().MTU; mtu != 1300 {
			t.Errorf("the container's MTU is %d", mtu)
		}
		return nil
	})
}

// A peer that claims an address of a container here (it was there, and nobody
// has said yet that it is not) has no effect while the container is here.
func TestSet_OwnContainersComeBeforePeers(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	claim := c1.peer()
	claim.VTEP = n2.Address
	near := n1.attach(t, "near", webID, "10.0.9.7/24", "fd00:9::7/64")
	serve(t, c1)
	n1.set(t, web(n1, claim, c2.peer()))
	n1.right(t, webID)
	for _, a := range c1.addrs() {
		reach(t, near, "tcp", a, 100)
	}
	before, err := n1.Inspect(t.Context(), webID)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(before.Text, c1.MAC.String()+" dst") {
		t.Errorf("the container is found by the other node:\n%s", before.Text)
	}
	// When it goes, the other's claim holds; and when it comes, not.
	if err := n1.Detach(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	n1.right(t, webID)
	if st, _ := n1.Inspect(t.Context(), webID); !strings.Contains(st.Text, "fdb "+c1.MAC.String()+" dst "+n2.Address.String()) {
		t.Errorf("the claim is not programmed:\n%s", st.Text)
	}
	if err := n1.Attach(t.Context(), c1.Attachment); err != nil {
		t.Fatal(err)
	}
	after, err := n1.Inspect(t.Context(), webID)
	if err != nil || after.Text != before.Text {
		t.Errorf("it is not as it was: %v\n%s", err, after.Text)
	}
	n1.right(t, webID)
}

func TestSet_ManyAtOnce(t *testing.T) {
	n1, _, _, c2 := pair(t)
	var wg sync.WaitGroup
	for i := range 8 {
		id := string(rune('k' + i))
		ns := newNamespace(t)
		wg.Go(func() {
			addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 9, byte(50 + i)}), 24)
			for range 3 {
				a := overlay.Attachment{ID: id, Network: webID, Namespace: ns, Interface: "eth0", Addresses: []netip.Prefix{addr}, MAC: overlay.MAC([]netip.Addr{addr.Addr()})}
				if err := n1.Attach(t.Context(), a); err != nil {
					t.Error(err)
				}
				if _, err := n1.Stats(id); err != nil {
					t.Error(err)
				}
				if err := n1.Set(t.Context(), []*overlay.Network{web(n1, c2.peer())}); err != nil {
					t.Error(err)
				}
				if n, err := n1.Check(t.Context()); err != nil || n != 0 {
					t.Error(n, err)
				}
				if err := n1.Detach(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n1.right(t, webID)
}

func TestDestroy_LeavesNothing(t *testing.T) {
	n1, _, _, _ := pair(t)
	if err := n1.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	n1.leavesNothing(t)
	if _, err := os.Stat(n1.config.RunDir + "/overlay"); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
	n1.restart(t)
}

// Who asks for a peer before there is one finds it as soon as there is.
func TestSet_APeerThatSomebodyWaitsFor(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	serve(t, c2)
	for _, to := range c2.addrs() {
		var err error
		for range 3 { // the last question may go out just before the answer is there
			n1.set(t, web(n1))
			if _, found := dial(t, c1, "tcp", to, 2200*time.Millisecond); found == nil {
				t.Fatalf("%s was reached", to)
			}
			n1.set(t, web(n1, c2.peer()))
			began := time.Now()
			var c net.Conn
			if c, err = dial(t, c1, "tcp", to, patience); err == nil {
				t.Logf("%s is reached %v after it is there", to, time.Since(began))
				_ = c.Close()
				break
			}
		}
		if err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}
