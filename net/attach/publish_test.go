// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/link/linktest"
	"skep/store/object"
)

func TestPublish_ReachesTheContainerFromEverywhere(t *testing.T) {
	for _, bridged := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+bridged, func(t *testing.T) {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(bridged), 0); err != nil {
				if bridged == "0" && errors.Is(err, os.ErrNotExist) {
					t.Log("the kernel has no bridge netfilter: as 0")
				} else if errors.Is(err, os.ErrNotExist) {
					t.Skip("the kernel has no bridge netfilter")
				} else {
					t.Fatal(err)
				}
			}
			everywhere(t)
		})
	}
}

func everywhere(t *testing.T) {
	t.Helper()
	n := newNode(t, "aaaaaa")
	client := linktest.NewHost(t)
	web := n.connect(t, "web", port("tcp", 8080, 80), port("udp", 8080, 80))
	other := n.connect(t, "other")
	serve(t, web, "web", 80)
	gateway := netip.MustParseAddr(web.Gateway)
	loopback := netip.MustParseAddr("127.0.0.1")

	for _, proto := range []string{"tcp", "udp"} {
		for _, tt := range []struct {
			name string
			from place
			to   netip.Addr
			// sees is the client's address as the container sees it.
			sees netip.Addr
		}{
			{"another machine", client, client.Gateway, client.Address},
			{"the node, by 127.0.0.1", here{}, loopback, gateway},
			{"the node, by its own address", here{}, client.Gateway, client.Gateway},
			{"another container, by the node", other, client.Gateway, gateway},
			{"another container, by the bridge", other, gateway, gateway},
			{"the container itself, by the node", web, client.Gateway, gateway},
		} {
			t.Run(proto+" from "+tt.name, func(t *testing.T) {
				if got := mustGet(t, tt.from, proto, at(tt.to, 8080), "web"); got != tt.sees {
					t.Errorf("the container sees %s, want %s", got, tt.sees)
				}
			})
		}
		// Without the node in between.
		if got := mustGet(t, other, proto, at(web.addr(t), 80), "web"); got != other.addr(t) {
			t.Errorf("the container sees %s, want %s", got, other.addr(t))
		}
	}
}

func TestPublish_AtOneAddress(t *testing.T) {
	n := newNode(t, "aaaaaa")
	client := linktest.NewHost(t)
	p := port("tcp", 8080, 80)
	p.HostIP = "127.0.0.1"
	web := n.connect(t, "web", p)
	serve(t, web, "web", 80)
	mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
	if _, _, err := get(t, client, "tcp", at(client.Gateway, 8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("another machine got: %v", err)
	}
	// The same port of another address is another's.
	p.HostIP = client.Gateway.String()
	serve(t, n.connect(t, "web2", p), "web2", 80)
	mustGet(t, client, "tcp", at(client.Gateway, 8080), "web2")
	mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
}

func TestEgress_HasTheNodesAddress(t *testing.T) {
	n := newNode(t, "aaaaaa")
	world := linktest.NewHost(t)
	serve(t, world, "world", 80)
	c := n.connect(t, "c")
	if got := mustGet(t, c, "tcp", at(world.Address, 80), "world"); got != world.Gateway {
		t.Errorf("the world sees %s, want %s", got, world.Gateway)
	}
}

func TestGuard(t *testing.T) {
	n := newNode(t, "aaaaaa")
	client := linktest.NewHost(t)
	web := n.connect(t, "web", port("tcp", 8080, 80))
	serve(t, web, "web", 80)
	serve(t, here{}, "node", 7070)

	// Another machine that routes to the containers by the node gets no answer
	// from what is not published, although there is a route.
	blocked(t, client, at(web.addr(t), 80))
	// A container sends packets for 127.0.0.1 to the node.
	web.Within(t, func() error {
		for name, value := range map[string]string{"all/route_localnet": "1", "eth0/route_localnet": "1"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return routeLoopbackToGateway(web)
	})
	blocked(t, web, "127.0.0.1:7070")
	mustGet(t, web, "tcp", at(netip.MustParseAddr(web.Gateway), 7070), "node")
}

func TestDisconnect_CutsConnections(t *testing.T) {
	n := newNode(t, "aaaaaa")
	client := linktest.NewHost(t)
	serve(t, n.connect(t, "a", port("tcp", 8080, 80)), "a", 80)
	c, err := dial(t, client, "tcp", at(client.Gateway, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, _, err := ask(c); err != nil {
		t.Fatal(err)
	}
	if err := n.Disconnect(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	serve(t, n.connect(t, "b", port("tcp", 8080, 80)), "b", 80)
	// The client learns it at once, not by a timeout.
	if _, _, err := ask(c); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the client got: %v", err)
	}
	mustGet(t, client, "tcp", at(client.Gateway, 8080), "b")
}

func TestUDP_SenderFromBeforeReachesAPortPublishedLater(t *testing.T) {
	n := newNode(t, "aaaaaa")
	client := linktest.NewHost(t)
	c, err := dial(t, client, "udp", at(client.Gateway, 5353))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, _, err := ask(c); err == nil {
		t.Fatal("somebody answered on an unpublished port")
	}
	serve(t, n.connect(t, "dns", port("udp", 5353, 53)), "dns", 53)
	if name, _, err := ask(c); err != nil || name != "dns" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestPorts_AreNobodyElses(t *testing.T) {
	n := newNode(t, "aaaaaa")
	connect := func(id string, p object.Port) error {
		_, err := n.Connect(t.Context(), object.Endpoint{ID: id, Network: "bridge", Ports: []object.Port{p}})
		return err
	}
	n.connect(t, "one", port("tcp", 8080, 80), port("udp", 8080, 80))

	local := port("tcp", 8080, 80)
	local.HostIP = "127.0.0.1"
	for _, tt := range []struct {
		name, bind string
		port       object.Port
	}{
		{"another container", "0.0.0.0:8080", port("tcp", 8080, 81)},
		{"one of all addresses", "127.0.0.1:8080", local},
	} {
		err := connect("x", tt.port)
		_, endpoint, _ := strings.Cut(fmt.Sprint(err), "name-of-x (")
		id, _, _ := strings.Cut(endpoint, ")")
		want := fmt.Sprintf("driver failed programming external connectivity on endpoint name-of-x (%s): Bind for %s failed: port is already allocated", id, tt.bind)
		if err == nil || err.Error() != want || len(id) != 64 || !errors.Is(err, errdefs.ErrConflict) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}

	// Another program listens already.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	busy := netip.MustParseAddrPort(l.Addr().String()).Port()
	if err := connect("x", port("tcp", busy, 80)); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("a port on which a program listens: %v", err)
	}
	// Another program comes later, however it asks.
	for _, proto := range []string{"tcp", "udp"} {
		for _, address := range []string{":8080", "0.0.0.0:8080", "127.0.0.1:8080"} {
			if err := listen(t, proto, address); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("another program took %s %s: %v", proto, address, err)
			}
		}
	}
	// After the container it may.
	if err := n.Disconnect(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := listen(t, "tcp", ":8080"); err != nil {
		t.Errorf("the port is still taken: %v", err)
	}
	for _, p := range []object.Port{
		{Protocol: "sctp", Host: 80, Container: 80},
		{Protocol: "tcp", Host: 80, Container: 80, HostIP: "::1"},
	} {
		if err := connect("x", p); !errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("%v: %v", p, err)
		}
	}
	if err := connect("x", object.Port{Protocol: "tcp", Host: 80, Container: 80, HostIP: "203.0.113.1"}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address that is not the node's: %v", err)
	}
}

func listen(t *testing.T, proto, address string) error {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	if proto == "tcp" {
		l, err := c.Listen(t.Context(), proto, address)
		if err == nil {
			err = l.Close()
		}
		return err
	}
	l, err := c.ListenPacket(t.Context(), proto, address)
	if err == nil {
		err = l.Close()
	}
	return err
}

// What is left of connections to a server that has ended does not keep its port.
func TestPorts_OldConnectionsDoNotMatter(t *testing.T) {
	n := newNode(t, "aaaaaa")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// Who closes first keeps the connection for a minute.
	if err := errors.Join(s.Close(), c.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddrPort(l.Addr().String()).Port()
	serve(t, n.connect(t, "web", port("tcp", host, 80)), "web", 80)
	mustGet(t, here{}, "tcp", l.Addr().String(), "web")
}

func TestPorts_AreChosen(t *testing.T) {
	n := newNode(t, "aaaaaa")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 20003"), 0); err != nil {
		t.Fatal(err)
	}
	usual := func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("32768 60999"), 0); err != nil {
			t.Error(err)
		}
	}
	defer usual()
	l, err := net.Listen("tcp4", "0.0.0.0:20001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var got []uint16
	for _, id := range []string{"a", "b", "c"} {
		at := n.connect(t, id, port("tcp", 0, 80))
		again := n.connect(t, id, port("tcp", 0, 80))
		if at.Ports[0] != again.Ports[0] {
			t.Errorf("asked again, got %v and %v", at.Ports, again.Ports)
		}
		serve(t, at, id, 80)
		got = append(got, at.Ports[0].Host)
	}
	if fmt.Sprint(got) != "[20000 20002 20003]" {
		t.Errorf("chose %v", got)
	}
	_, err = n.Connect(t.Context(), object.Endpoint{ID: "d", Ports: []object.Port{port(network.TCP, 0, 80)}})
	if !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("no port is left, but: %v", err)
	}
	usual() // the clients' ports are from that range
	for i, id := range []string{"a", "b", "c"} {
		mustGet(t, here{}, "tcp", fmt.Sprintf("127.0.0.1:%d", got[i]), id)
	}
}
