// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/net/link"
	"skep/net/overlay"
)

func TestAttach_AgainIsAQuestion(t *testing.T) {
	n1, _, c1, _ := pair(t)
	path, _ := n1.Namespace(webID)
	if n := kernelChanges(t, path, func() {
		if err := n1.Attach(t.Context(), c1.Attachment); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%d changes in the kernel, want none", n)
	}
}

func TestAttach_DifferentlyIsAnew(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	serve(t, c2)
	a := c1.Attachment
	a.Interface = "eth7"
	a.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.9.15/24")}
	a.MAC = overlay.MAC([]netip.Addr{a.Addresses[0].Addr()})
	if err := n1.Attach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]overlay.Attachment{a}, n1.Attached("c1"), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("attached (-want +got):\n%s", d)
	}
	moved := &box{a, n1}
	n2.set(t, web(n2, moved.peer()))
	reach(t, moved, "tcp", c2.addrs()[0], 100)
	n1.right(t, webID)
	moved.Within(t, func() error {
		ifs, err := net.Interfaces()
		if len(ifs) != 2 || ifs[1].Name != "eth7" {
			t.Errorf("devices: %v", ifs)
		}
		return err
	})
}

// A container that was started anew has another namespace at the same path.
func TestAttach_ToAnotherNamespaceAtTheSamePath(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	if err := link.Remove(c1.Namespace); err != nil {
		t.Fatal(err)
	}
	if err := link.Create(c1.Namespace, link.Loopback); err != nil {
		t.Fatal(err)
	}
	if err := n1.Attach(t.Context(), c1.Attachment); err != nil {
		t.Fatal(err)
	}
	serve(t, c2)
	for _, a := range c2.addrs() {
		reach(t, c1, "tcp", a, 100)
	}
	n1.right(t, webID)
}

func TestAttach_ContainerOnTwoNetworks(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	other := func(n *node, peers ...overlay.Peer) *overlay.Network {
		o := web(n, peers...)
		o.ID, o.VNI = "other", 4098
		o.Subnets = []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.0.10.0/24"), Gateway: netip.MustParseAddr("10.0.10.1")}}
		return o
	}
	n1.set(t, web(n1, c2.peer()), other(n1))
	n2.set(t, web(n2, c1.peer()), other(n2))
	second := n1.attachIn(t, c1.Namespace, "eth1", "c1", "other", "10.0.10.5/24")
	far := n2.attach(t, "far", "other", "10.0.10.6/24")
	n1.set(t, web(n1, c2.peer()), other(n1, far.peer()))
	n2.set(t, web(n2, c1.peer()), other(n2, second.peer()))
	serve(t, far)
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 10000)
	reach(t, c1, "tcp", far.addrs()[0], 100)
	stats, err := n1.Stats("c1")
	if err != nil || len(stats) != 2 || stats["eth0"].TxBytes < 10000 || stats["eth0"].RxBytes < 10000 || stats["eth1"].TxPackets == 0 {
		t.Errorf("counters: %+v, %v", stats, err)
	}
	if got := n1.Attached("c1"); len(got) != 2 || got[0].Network != "other" || got[1].Network != webID {
		t.Errorf("attached: %v", got)
	}
	if err := n1.Detach(t.Context(), "c1", "other", "none"); err != nil {
		t.Fatal(err)
	}
	if got := n1.Attached("c1"); len(got) != 1 || got[0].Network != webID {
		t.Errorf("attached without the other: %v", got)
	}
	reach(t, c1, "tcp", c2.addrs()[0], 100)
	for range 2 {
		if err := n1.Detach(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	c1.Within(t, func() error {
		ifs, err := net.Interfaces()
		if len(ifs) != 1 {
			t.Errorf("devices are left: %v", ifs)
		}
		return err
	})
	if stats, err := n1.Stats("c1"); err != nil || len(stats) > 0 {
		t.Errorf("counters of what is gone: %v, %v", stats, err)
	}
	n1.right(t, webID)
	n1.right(t, "other")
}

func TestRetain_OthersAreGone(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	n1.attach(t, "x", webID, "10.0.9.20/24")
	n1.attach(t, "y", webID, "10.0.9.21/24")
	if err := n1.Retain(t.Context(), []string{"c1", "z"}); err != nil {
		t.Fatal(err)
	}
	if len(n1.Attached("x"))+len(n1.Attached("y")) > 0 || len(n1.Attached("c1")) != 1 {
		t.Error("not those that were to be are attached")
	}
	n1.right(t, webID)
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 100)
}

func TestAttach_Refuses(t *testing.T) {
	n1, _, c1, _ := pair(t)
	for want, change := range map[string]func(*overlay.Attachment){
		"network nowhere is not on this node": func(a *overlay.Attachment) { a.Network = "nowhere" },
		"container's ID is missing":           func(a *overlay.Attachment) { a.ID = "" },
		"not six bytes":                       func(a *overlay.Attachment) { a.MAC = nil },
		"device name":                         func(a *overlay.Attachment) { a.Interface = strings.Repeat("x", 16) },
		"there is no address":                 func(a *overlay.Attachment) { a.Addresses = nil },
		"there is no network namespace at":    func(a *overlay.Attachment) { a.Namespace = t.TempDir() },
	} {
		a := c1.Attachment
		a.ID = "new"
		change(&a)
		if err := n1.Attach(t.Context(), a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// The container has a device of that name already: nothing is left of the try.
	a := c1.Attachment
	a.ID = "new"
	if err := n1.Attach(t.Context(), a); err == nil {
		t.Error("a second device of the same name")
	}
	if len(n1.Attached("new")) > 0 {
		t.Error("it is attached")
	}
	if _, err := n1.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	n1.right(t, webID)
}
