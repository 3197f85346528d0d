// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"skep/net/ipam"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/store/object"
)

func routeLoopbackToGateway(b box) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err = netlink.AddrDel(lo, &a); err != nil {
			return err
		}
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	gw := net.ParseIP(b.Gateway)
	p := netip.MustParsePrefix(b.Address)
	// In the local table, which is asked first.
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: eth0.Attrs().Index, Gw: gw, Src: p.Addr().AsSlice(), Table: 255,
		Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 0), Mask: net.CIDRMask(8, 32)},
	})
}

func TestConnect_Bridge(t *testing.T) {
	n := newNode(t, "bbbbbb")
	a := n.connect(t, "a")
	if a.Interface != "vbbbbbbac110003" || a.Address != "172.17.0.3/20" || a.Gateway != "172.17.0.1" || a.MAC != "02:42:ac:11:00:03" {
		t.Errorf("attachment: %+v", a)
	}
	if b := n.connect(t, "a"); b.Address != a.Address {
		t.Errorf("connected again, got %s, had %s", b.Address, a.Address)
	}
	if got, ok := n.Attachment("a"); !ok || got.Namespace != a.Namespace {
		t.Errorf("attachment: %+v, %t", got, ok)
	}
	a.Within(t, func() error {
		ifs, err := net.Interfaces()
		if err != nil {
			return err
		}
		var got []string
		for _, i := range ifs {
			addrs, err := i.Addrs()
			if err != nil {
				return err
			}
			got = append(got, fmt.Sprint(i.Name, " ", i.HardwareAddr, " ", i.MTU, " ", i.Flags&net.FlagUp, " ", addrs))
		}
		want := []string{"lo  65536 up [127.0.0.1/8 ::1/128]", "eth0 02:42:ac:11:00:03 1500 up [172.17.0.3/20]"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("devices: got %q, want %q", got, want)
		}
		return nil
	})
	serve(t, a, "a", 80)
	mustGet(t, here{}, "tcp", "172.17.0.3:80", "a")
	stats, err := n.Stats("a")
	if err != nil {
		t.Fatal(err)
	}
	if s := stats["eth0"]; s.RxBytes < 100 || s.TxBytes < 100 || s.RxPackets < 4 {
		t.Errorf("counters: %+v", stats)
	}
	// A freed address is not the next to be handed out.
	if err := n.Disconnect(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if b := n.connect(t, "b"); b.Address != "172.17.0.4/20" {
		t.Errorf("got %s", b.Address)
	}
	n.restart(t)
	if c := n.connect(t, "c"); c.Address != "172.17.0.5/20" {
		t.Errorf("after a restart got %s", c.Address)
	}
}

func TestConnect_NamesTheDeviceAsAsked(t *testing.T) {
	n := newNode(t, "bbbbbb")
	for _, name := range []string{"eth2", "eth1"} {
		at, err := n.Connect(t.Context(), object.Endpoint{ID: "a", Interface: name})
		if err != nil {
			t.Fatal(err)
		}
		n.restart(t)
		box{at}.Within(t, func() error {
			_, err := net.InterfaceByName(name)
			return err
		})
		stats, err := n.Stats("a")
		if _, ok := stats[name]; err != nil || !ok || len(stats) != 1 {
			t.Errorf("counters of %s: %v, %v", name, stats, err)
		}
		if got, ok := n.Attachment("a"); !ok || got.Endpoint.Interface != name || got.Interface != at.Interface {
			t.Errorf("attachment: %+v", got)
		}
	}
}

// An endpoint on networks of the swarm that keep to themselves has no device
// here, but what it asked for is found again.
func TestConnect_KeepsOverlays(t *testing.T) {
	n := newNode(t, "bbbbbb")
	place := object.Overlay{Network: "net1", Task: "t1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.2/24")}}
	e := object.Endpoint{ID: "a", Overlays: []object.Overlay{place}, Internal: true}
	at, err := n.Connect(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if all := n.Attachments(); len(all) != 1 || all[0].Address != "" || all[0].Namespace != at.Namespace || len(all[0].Endpoint.Overlays) != 1 {
		t.Errorf("attachments: %+v", all)
	}
	box{at}.Within(t, func() error {
		devices, err := net.Interfaces()
		if len(devices) != 1 || devices[0].Flags&net.FlagUp == 0 {
			t.Errorf("devices: %+v", devices)
		}
		return err
	})
	if !n.Serves(e) {
		t.Error("is not there as it was asked for")
	}
	e.Ports = []object.Port{port("tcp", 8080, 80)}
	if n.Serves(e) {
		t.Error("is there with ports that nobody asked for yet")
	}
	if at, err = n.Connect(t.Context(), e); err != nil || at.Address == "" {
		t.Errorf("with ports: %+v, %v", at, err)
	}
	if list, err := n.List(t.Context()); err != nil || len(list[0].Containers) > 0 {
		t.Errorf("listed on the bridge: %+v, %v", list[0].Containers, err)
	}
	if b := n.Bridge(); b.Sandbox.String() != "172.17.0.2" || b.Name != "skbbbbbb" {
		t.Errorf("bridge: %+v", b)
	}
}

// The first endpoint on a bridge, and the next after the last has gone: the
// kernel would put off making the bridge usable, and a client's first packet
// would be lost, which costs a second.
func TestConnect_IsReadyWhenItReturns(t *testing.T) {
	n := newNode(t, "bbbbbb")
	for i := range 8 {
		if i == 4 {
			n.restart(t)
		}
		c := n.connect(t, fmt.Sprint("c", i), port("tcp", 8080, 80))
		serve(t, c, "c", 80)
		start := time.Now()
		mustGet(t, here{}, "tcp", at(c.addr(t), 80), "c")
		mustGet(t, here{}, "tcp", "127.0.0.1:8080", "c")
		if took := time.Since(start); took > 900*time.Millisecond {
			t.Errorf("endpoint %d: the first connections took %s", i, took)
		}
		if err := n.Disconnect(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnect_HostAndNone(t *testing.T) {
	n := newNode(t, "bbbbbb")
	h, err := n.Connect(t.Context(), object.Endpoint{ID: "h", Network: "host", Ports: []object.Port{port("tcp", 80, 80)}})
	if err != nil || h.Namespace != "" || h.Address != "" || len(h.Ports) != 0 {
		t.Errorf("host: %+v, %v", h, err)
	}
	none, err := n.Connect(t.Context(), object.Endpoint{ID: "n", Network: "none", Ports: []object.Port{port("tcp", 80, 80)}})
	if err != nil || none.Address != "" || len(none.Ports) != 0 {
		t.Errorf("none: %+v, %v", none, err)
	}
	box{none}.Within(t, func() error {
		ifs, err := net.Interfaces()
		if len(ifs) != 1 || ifs[0].Flags&net.FlagUp == 0 {
			t.Errorf("devices: %v", ifs)
		}
		return err
	})
	for _, id := range []string{"h", "n"} {
		if s, err := n.Stats(id); err != nil || len(s) != 0 {
			t.Errorf("counters of %s: %v, %v", id, s, err)
		}
	}
	n.restart(t)
	for _, id := range []string{"h", "n"} {
		if _, ok := n.Attachment(id); !ok {
			t.Errorf("%s was forgotten", id)
		}
	}
	if _, err := n.Connect(t.Context(), object.Endpoint{ID: "x", Network: "front"}); !errors.Is(err, errdefs.ErrNotFound) || err.Error() != "network front not found" {
		t.Errorf("unknown network: %v", err)
	}
	for _, id := range []string{"", "../x", "a/b", ".", "a.b"} {
		if _, err := n.Connect(t.Context(), object.Endpoint{ID: id, Network: "none"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("ID %q: %v", id, err)
		}
	}
}

func TestConnect_AskedDifferentlyIsMadeAnew(t *testing.T) {
	n := newNode(t, "bbbbbb")
	n.connect(t, "a", port("tcp", 8080, 80))
	b := n.connect(t, "a", port("tcp", 8081, 80))
	serve(t, b, "a", 80)
	mustGet(t, here{}, "tcp", "127.0.0.1:8081", "a")
	blocked(t, here{}, "127.0.0.1:8080")
	// So is one whose namespace was lost.
	if err := link.Remove(b.Namespace); err != nil {
		t.Fatal(err)
	}
	c := n.connect(t, "a", port("tcp", 8081, 80))
	serve(t, c, "new", 80)
	mustGet(t, here{}, "tcp", "127.0.0.1:8081", "new")
}

func TestDisconnect_LeavesNothing(t *testing.T) {
	n := newNode(t, "bbbbbb")
	empty, _ := n.table(t)
	const many = 5
	for i := range many {
		c := n.connect(t, fmt.Sprint("c", i), port("tcp", uint16(8080+i), 80), port("udp", 0, 53))
		serve(t, c, "c", 80)
		mustGet(t, here{}, "tcp", fmt.Sprintf("127.0.0.1:%d", 8080+i), "c")
	}
	if len(flows(t)) == 0 {
		t.Fatal("the kernel remembers no connection: the test sees nothing")
	}
	for i := range many {
		for range 2 {
			if err := n.Disconnect(t.Context(), fmt.Sprint("c", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := devices(t, "vbbbbbb"); len(left) > 0 {
		t.Errorf("devices are left: %s", left)
	}
	if left := flows(t); len(left) > 0 {
		t.Errorf("the kernel remembers connections: %v", left)
	}
	if table, _ := n.table(t); table.String() != empty.String() {
		t.Errorf("rules are left:\n%s", table)
	}
	n.runsNothing(t)
}

// flows lists connections from or to containers.
func flows(t *testing.T) (found []*netlink.ConntrackFlow) {
	t.Helper()
	all, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	pool, gateway := netip.MustParsePrefix("172.17.0.0/16"), netip.MustParseAddr("172.17.0.1")
	for _, f := range all {
		if f.Forward.Protocol == 2 {
			continue // IGMP of the bridges, of other tests too
		}
		for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
			if a, ok := netip.AddrFromSlice(ip.To4()); ok && a != gateway && pool.Contains(a) {
				found = append(found, f)
				break
			}
		}
	}
	return found
}

func TestTwoNodes_SideBySide(t *testing.T) {
	one, two := newNode(t, "111111"), newNode(t, "222222")
	client := linktest.NewHost(t)
	a := one.connect(t, "a", port("tcp", 8081, 80))
	b := two.connect(t, "b", port("tcp", 8082, 80)) // the same container's ID would do, too
	c := two.connect(t, "a", port("tcp", 8083, 80))
	if netip.MustParsePrefix(a.Address).Overlaps(netip.MustParsePrefix(b.Address)) {
		t.Errorf("both nodes use one subnet: %s, %s", a.Address, b.Address)
	}
	serve(t, a, "one-a", 80)
	serve(t, b, "two-b", 80)
	serve(t, c, "two-a", 80)
	for p, want := range map[int]string{8081: "one-a", 8082: "two-b", 8083: "two-a"} {
		for _, from := range []place{client, here{}, a, b, c} {
			mustGet(t, from, "tcp", at(client.Gateway, p), want)
		}
	}
	_, err := two.Connect(t.Context(), object.Endpoint{ID: "x", Ports: []object.Port{port("tcp", 8081, 80)}})
	if !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("a port of the other node: %v", err)
	}
	one.restart(t)
	two.restart(t)
	if err := two.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	mustGet(t, client, "tcp", at(client.Gateway, 8081), "one-a")
}

func TestSubnet_AvoidsTheMachinesOwn(t *testing.T) {
	n := newNode(t, "bbbbbb")
	n.shut(t)
	if err := os.RemoveAll(n.config.Dir); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// A route as a VPN makes it.
	vpn := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(172, 16, 0, 0), Mask: net.CIDRMask(12, 32)}}
	if err := netlink.RouteAdd(vpn); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	first := n.connect(t, "a")
	if first.Address != "192.168.0.3/20" {
		t.Errorf("address: %s", first.Address)
	}
	if err := netlink.RouteDel(vpn); err != nil {
		t.Fatal(err)
	}
	// Chosen once, it stays.
	n.restart(t)
	if b := n.connect(t, "b"); b.Address != "192.168.0.4/20" {
		t.Errorf("address: %s", b.Address)
	}
	n.shut(t)
	n.config.Ranges = []ipam.Range{{Base: netip.MustParsePrefix("10.9.0.0/16"), Bits: 24}}
	n.open(t)
}

func TestList_HasDockersShape(t *testing.T) {
	n := newNode(t, "bbbbbb")
	web := n.connect(t, "web")
	if _, err := n.Connect(t.Context(), object.Endpoint{ID: "h", Network: "host"}); err != nil {
		t.Fatal(err)
	}
	list, err := n.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]network.Inspect{}
	for _, i := range list {
		by[i.Name] = i
		if len(i.ID) != 64 || i.Created.IsZero() {
			t.Errorf("%s: ID %q, created %s", i.Name, i.ID, i.Created)
		}
	}
	shape := func(name string) string {
		i := by[name]
		b, failed := json.Marshal(struct {
			Driver, Scope string
			IPAM          network.IPAM
			Options       map[string]string
			Containers    map[string]network.EndpointResource
		}{i.Driver, i.Scope, i.IPAM, i.Options, i.Containers})
		if failed != nil {
			t.Fatal(failed)
		}
		return string(b)
	}
	want := map[string]string{
		"bridge": `{"Driver":"bridge","Scope":"local","IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"172.17.0.0/20","Gateway":"172.17.0.1"}]},` +
			`"Options":{"com.docker.network.bridge.default_bridge":"true","com.docker.network.bridge.enable_icc":"true","com.docker.network.bridge.enable_ip_masquerade":"true",` +
			`"com.docker.network.bridge.host_binding_ipv4":"0.0.0.0","com.docker.network.bridge.name":"skbbbbbb","com.docker.network.driver.mtu":"1500"},` +
			`"Containers":{"web":{"Name":"name-of-web","EndpointID":"` + web.EndpointID + `","MacAddress":"02:42:ac:11:00:03","IPv4Address":"172.17.0.3/20","IPv6Address":""}}}`,
		"none": `{"Driver":"null","Scope":"local","IPAM":{"Driver":"default","Options":null,"Config":null},"Options":{},"Containers":{}}`,
	}
	for name, w := range want {
		if got := shape(name); got != w {
			t.Errorf("%s:\n got %s\nwant %s", name, got, w)
		}
	}
	if c := by["host"].Containers["h"]; c.Name != "name-of-h" || c.IPv4Address.IsValid() {
		t.Errorf("host: %+v", by["host"].Containers)
	}
	n.restart(t)
	again, err := n.List(t.Context())
	if err != nil || again[0].ID != by["bridge"].ID || !again[0].Created.Equal(by["bridge"].Created) {
		t.Errorf("after a restart: %v, %v", again, err)
	}
}

// Every endpoint comes and goes beside others, under the race detector too.
func TestConnect_ManyAtOnce(t *testing.T) {
	n := newNode(t, "bbbbbb")
	var complaints bytes.Buffer
	n.config.Logger = slog.New(slog.NewTextHandler(&complaints, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n.restart(t)
	empty, _ := n.table(t)
	const many, rounds = 12, 3
	var mu sync.Mutex
	seen := map[string]string{}
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			id := fmt.Sprint("c", i)
			for range rounds {
				at, err := n.Connect(t.Context(), object.Endpoint{ID: id, Ports: []object.Port{port("tcp", uint16(8080+i), 80), port("tcp", 0, 80)}})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, key := range []string{at.Address, at.MAC, at.Interface} {
					if other, ok := seen[key]; ok {
						t.Errorf("%s and %s both got %s", other, id, key)
					}
					seen[key] = id
				}
				mu.Unlock()
				if err := n.Disconnect(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != 3*many*rounds {
		t.Errorf("saw %d addresses and names, want %d", len(seen), 3*many*rounds)
	}
	if table, _ := n.table(t); table.String() != empty.String() {
		t.Errorf("rules are left:\n%s", table)
	}
	if complaints.Len() > 0 {
		t.Errorf("logged: %s", complaints.String())
	}
	n.runsNothing(t)
}
