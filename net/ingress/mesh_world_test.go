// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"skep/net/ingress"
	"skep/net/ipam"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/nft"
	"skep/net/overlay"
)

// fabric is the ingress network of the tests.
var (
	fabric  = netip.MustParsePrefix("10.0.0.0/24")
	gateway = netip.MustParseAddr("10.0.0.1")
	inside  = netip.MustParsePrefix("172.17.0.0/20") // of every node's bridge
	sandbox = netip.MustParseAddr("172.17.0.2")
)

// world is some nodes with a mesh, and what is published.
type world struct {
	tb        testing.TB
	lan       *linktest.Switch
	nodes     []*meshNode
	published []ingress.Published
	tasks     []*task
	last      byte // of the tasks' addresses
}

func newWorld(tb testing.TB, nodes int) *world {
	tb.Helper()
	w := &world{tb: tb, lan: linktest.NewSwitch(tb), last: 9}
	for range nodes {
		w.nodes = append(w.nodes, w.newNode())
	}
	w.set()
	return w
}

// meshNode is a machine with all that a node has for the mesh.
type meshNode struct {
	*linktest.Machine
	*ingress.Mesh
	overlay *overlay.Overlay
	link    *link.Conn
	config  ingress.MeshConfig
	slot    int
	second  netip.Addr // another address of the machine
	guests  byte       // on its bridge
}

func (w *world) newNode() *meshNode {
	tb := w.tb
	tb.Helper()
	slot := 3*len(w.nodes) + 1
	n := &meshNode{Machine: w.lan.Machine(tb), slot: slot, guests: 9}
	scope := fmt.Sprintf("00000%x", slot)
	log := slog.New(slog.NewTextHandler(tb.Output(), nil))
	n.config = ingress.MeshConfig{
		Scope: scope, Bridge: "sk" + scope, BridgeSubnet: inside, BridgeGateway: inside.Addr().Next(), Sandbox: sandbox, Logger: log,
		Mode: mode(),
	}
	b := n.Address.As4()
	b[3] += 100
	n.second = netip.AddrFrom4(b)
	n.Within(tb, func() (err error) {
		if n.link, err = link.Open(); err != nil {
			return err
		}
		if err = link.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
		if err = addAddress("eth0", netip.PrefixFrom(n.second, 24)); err != nil {
			return err
		}
		gw := n.config.BridgeGateway
		if _, err = n.link.EnsureBridge(link.Bridge{Name: n.config.Bridge, Address: netip.PrefixFrom(gw, inside.Bits()), MAC: ipam.MAC(gw), MTU: 1500}); err != nil {
			return err
		}
		if err = onFilter(func(c *nft.Conn) error {
			return c.Replace(ingress.Plan(ingress.Local{Table: "skep-" + scope, Bridge: n.config.Bridge, Subnet: inside}, nil))
		}); err != nil {
			return err
		}
		n.overlay, err = overlay.Open(tb.Context(), overlay.Config{RunDir: filepath.Join(tb.TempDir(), "run"), Scope: scope, Logger: log})
		return err
	})
	n.open(tb)
	tb.Cleanup(func() { n.destroy(tb) })
	return n
}

func (n *meshNode) open(tb testing.TB) {
	tb.Helper()
	n.Within(tb, func() (err error) {
		n.Mesh, err = ingress.OpenMesh(tb.Context(), n.config)
		return err
	})
}

// alone takes away what could help the mesh: the table of the node's own ports,
// and that bridged packets are translated, too.
func (n *meshNode) alone(tb testing.TB) {
	tb.Helper()
	n.Within(tb, func() error {
		err := link.Sysctl("net/bridge/bridge-nf-call-iptables", "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return onFilter(func(c *nft.Conn) error { return c.Delete(nft.IPv4, "skep-"+n.config.Scope) })
	})
}

// restart is what a new process does after the old one was killed.
func (n *meshNode) restart(tb testing.TB) {
	tb.Helper()
	if err := n.Close(); err != nil {
		tb.Error(err)
	}
	n.open(tb)
}

func (n *meshNode) destroy(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
	defer cancel()
	n.Within(tb, func() error { return n.Destroy(ctx) })
	n.leavesNothing(tb)
	if err := n.Close(); err != nil {
		tb.Error(err)
	}
	n.Within(tb, func() error { return n.overlay.Destroy(ctx) })
	if err := n.overlay.Close(); err != nil {
		tb.Error(err)
	}
	n.link.Close()
}

// leavesNothing fails if there is anything of the mesh on the node.
func (n *meshNode) leavesNothing(tb testing.TB) {
	tb.Helper()
	if names, err := n.link.Names("skm"); err != nil || len(names) > 0 {
		tb.Errorf("devices are left: %s, %v", names, err)
	}
	n.Within(tb, func() error {
		if text := tableText(tb, nft.IPv4, "skep-mesh-"+n.config.Scope); text != "" {
			tb.Errorf("left on the node:\n%s", text)
		}
		return nil
	})
	path, ok := n.overlay.Namespace("ingress")
	if !ok {
		return
	}
	within(tb, path, func() error {
		for _, f := range []nft.Family{nft.IPv4, nft.Bridge, nft.Inet} {
			for _, name := range []string{"skep-mesh", "skep-mesh-ports"} {
				if text := tableText(tb, f, name); text != "" {
					tb.Errorf("left in the network's namespace:\n%s", text)
				}
			}
		}
		if _, err := net.InterfaceByName("node0"); err == nil {
			tb.Error("the leg is left")
		}
		return nil
	})
}

func tableText(tb testing.TB, f nft.Family, name string) (text string) {
	tb.Helper()
	err := onFilter(func(c *nft.Conn) error {
		t, ok, err := c.Read(f, name)
		if ok {
			text = t.String()
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func onFilter(f func(*nft.Conn) error) error {
	c, err := nft.Open()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return f(c)
}

func addAddress(device string, p netip.Prefix) error {
	h, err := netlink.NewHandle(0) // route
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	return h.AddrAdd(l, a)
}

func within(tb testing.TB, path string, f func() error) {
	tb.Helper()
	if err := link.Within(path, f); err != nil {
		tb.Fatal(err)
	}
}

// set tells all nodes of everything.
func (w *world) set() {
	w.tb.Helper()
	for _, n := range w.nodes {
		w.setNode(n)
	}
}

func (w *world) setNode(n *meshNode) {
	w.tb.Helper()
	next := w.network(n)
	n.Within(w.tb, func() error {
		if err := n.overlay.Set(w.tb.Context(), []*overlay.Network{next}); err != nil {
			return err
		}
		return n.Set(w.tb.Context(), w.state(n))
	})
}

func (w *world) network(n *meshNode) *overlay.Network {
	out := &overlay.Network{
		ID: "ingress", VNI: 4096, Port: 4789, MTU: 1450, Local: n.Address,
		Subnets: []overlay.Subnet{{Prefix: fabric, Gateway: gateway}},
		Router: &overlay.Router{MAC: ingress.RouterMAC(n.slot), Addresses: []netip.Prefix{
			netip.PrefixFrom(gateway, fabric.Bits()), netip.PrefixFrom(ingress.RouterAddress(n.slot), 32),
		}},
	}
	for _, o := range w.nodes {
		if o != n {
			out.Peers = append(out.Peers, overlay.Peer{MAC: ingress.RouterMAC(o.slot), VTEP: o.Address})
		}
	}
	for _, t := range w.tasks {
		if t.node != n {
			out.Peers = append(out.Peers, overlay.Peer{Addresses: []netip.Addr{t.address}, MAC: ipam.MAC(t.address), VTEP: t.node.Address})
		}
	}
	return out
}

func (w *world) state(n *meshNode) ingress.MeshState {
	path, _ := n.overlay.Namespace("ingress")
	s := ingress.MeshState{Namespace: path, Slot: n.slot, Subnets: []netip.Prefix{fabric}, Published: w.published}
	for _, o := range w.nodes {
		s.Routers = append(s.Routers, o.slot)
	}
	return s
}

// task is a container on a node's bridge and on the ingress network.
type task struct {
	name    string
	node    *meshNode
	path    string
	address netip.Addr // on the ingress network
	near    netip.Addr // on the node's bridge
}

func (t *task) Within(tb testing.TB, f func() error) { tb.Helper(); within(tb, t.path, f) }

// guest makes a container that is on the node's bridge only.
func (n *meshNode) guest(tb testing.TB, name string) *task {
	tb.Helper()
	n.guests++
	b := inside.Addr().As4()
	b[3] = n.guests
	t := &task{name: name, node: n, path: filepath.Join(tb.TempDir(), "ns"), near: netip.AddrFrom4(b)}
	v := link.Veth{
		Name: fmt.Sprintf("v%s%x", n.config.Scope, b), Bridge: n.config.Bridge, Peer: "eth0", MTU: 1500,
		Address: netip.PrefixFrom(t.near, inside.Bits()), Gateway: n.config.BridgeGateway, MAC: ipam.MAC(t.near), Hairpin: true,
	}
	if err := link.Create(t.path, func() error { return n.link.Plug(v) }); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := link.Remove(t.path); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// member makes a container that is on the ingress network, too, and serves nothing.
func (w *world) member(n *meshNode, name string) *task {
	tb := w.tb
	tb.Helper()
	t := n.guest(tb, name)
	w.last++
	b := fabric.Addr().As4()
	b[3] = w.last
	t.address = netip.AddrFrom4(b)
	n.Within(tb, func() error {
		return n.overlay.Attach(tb.Context(), overlay.Attachment{
			ID: name, Network: "ingress", Namespace: t.path, Interface: "eth1",
			Addresses: []netip.Prefix{netip.PrefixFrom(t.address, fabric.Bits())}, MAC: ipam.MAC(t.address),
		})
	})
	w.tasks = append(w.tasks, t)
	return t
}

func (t *task) wants(ports ...ingress.MemberPort) ingress.Member {
	return ingress.Member{
		Namespace: t.path, Interface: "eth1", Address: netip.PrefixFrom(t.address, fabric.Bits()),
		Gateway: gateway, Subnet: fabric, Ports: ports,
	}
}

func (t *task) join(tb testing.TB, ports ...ingress.MemberPort) {
	tb.Helper()
	t.node.Within(tb, func() error { return t.node.Join(tb.Context(), t.wants(ports...)) })
}

// both is a target of TCP, and the same of UDP.
func both(index int, port uint16) []ingress.MemberPort {
	return []ingress.MemberPort{
		{Protocol: network.TCP, Target: port, Index: index}, {Protocol: network.UDP, Target: port, Index: index},
	}
}

// run makes a task of a service that answers at port 80, on TCP and UDP.
func (w *world) run(n *meshNode, name string) *task {
	w.tb.Helper()
	t := w.member(n, name)
	t.join(w.tb, both(0, 80)...)
	t.serve(w.tb, 80)
	return t
}

// publish leads a port of all nodes, on TCP and UDP, to the target of tasks.
func (w *world) publish(port uint16, source string, index int, target uint16, tasks ...*task) {
	for _, proto := range []network.IPProtocol{network.TCP, network.UDP} {
		p := ingress.Published{Protocol: proto, Port: port, Service: fmt.Sprintf("service-%d", port), Source: source}
		for _, t := range tasks {
			p.Backends = append(p.Backends, ingress.MeshBackend{Address: t.address, Target: target, Index: index})
		}
		w.published = append(w.published, p)
	}
}

// drain gives a task no new connections; cut takes it away.
func (w *world) drain(t *task) {
	w.change(func(bs []ingress.MeshBackend) []ingress.MeshBackend {
		for i := range bs {
			bs[i].Draining = bs[i].Draining || bs[i].Address == t.address
		}
		return bs
	})
}

func (w *world) cut(t *task) {
	w.change(func(bs []ingress.MeshBackend) []ingress.MeshBackend {
		return slices.DeleteFunc(bs, func(b ingress.MeshBackend) bool { return b.Address == t.address })
	})
}

func (w *world) change(f func([]ingress.MeshBackend) []ingress.MeshBackend) {
	w.tb.Helper()
	w.published = slices.Clone(w.published)
	for i := range w.published {
		w.published[i].Backends = f(slices.Clone(w.published[i].Backends))
	}
	w.set()
}

// serve answers on all addresses with who it is and who asks, TCP line by line.
func (t *task) serve(tb testing.TB, port int) {
	tb.Helper()
	t.serveAt(tb, fmt.Sprintf(":%d", port))
}

func (t *task) serveAt(tb testing.TB, at string) {
	tb.Helper()
	var l net.Listener
	var u net.PacketConn
	t.Within(tb, func() (err error) {
		if l, err = net.Listen("tcp4", at); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", at)
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() { echoUDP(u, t.name) })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tb.Cleanup(func() { _ = c.Close() })
			wg.Go(func() { echoTCP(c, t.name) })
		}
	})
	tb.Cleanup(func() {
		_, _ = l.Close(), u.Close()
		wg.Wait()
	})
}

func echoTCP(c net.Conn, name string) {
	defer func() { _ = c.Close() }()
	for s := bufio.NewScanner(c); s.Scan(); {
		if _, err := fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr()); err != nil {
			return
		}
	}
}

func echoUDP(u net.PacketConn, name string) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		answer := fmt.Sprintf("%s %s\n", name, from)
		if n > len(answer) {
			answer += strings.Repeat("x", n-len(answer)-1) + "\n"
		}
		_, _ = u.WriteTo([]byte(answer), from)
	}
}

const patience = 2 * time.Second

// place is where something may run.
type place interface {
	Within(tb testing.TB, f func() error)
}

// dial connects from a place, from an address of it if that is valid.
func dial(tb testing.TB, from place, local netip.AddrPort, proto string, to netip.AddrPort) (net.Conn, error) {
	tb.Helper()
	return dialWithin(tb, from, local, proto, to, patience)
}

func dialWithin(tb testing.TB, from place, local netip.AddrPort, proto string, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	tb.Helper()
	var c net.Conn
	var failed error
	from.Within(tb, func() error {
		d := net.Dialer{Timeout: limit}
		if local.IsValid() {
			d.Control = reuse
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
			if proto == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(local)
			}
		}
		c, failed = d.DialContext(tb.Context(), proto, to.String())
		return nil
	})
	return c, failed
}

// ask asks once over c who answers, and whom it sees.
func ask(c net.Conn) (name string, client netip.AddrPort, err error) {
	return askWith(c, "hello\n", patience)
}

func askWith(c net.Conn, question string, limit time.Duration) (name string, client netip.AddrPort, err error) {
	if err = c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", client, err
	}
	if _, err = c.Write([]byte(question)); err != nil {
		return "", client, err
	}
	line, err := bufio.NewReaderSize(c, 64<<10).ReadString('\n')
	if err != nil {
		return "", client, err
	}
	name, who, _ := strings.Cut(strings.TrimSpace(line), " ")
	client, err = netip.ParseAddrPort(who)
	return name, client, err
}

// get connects and asks. It returns who answered, whom that saw and who it was.
func get(tb testing.TB, from place, proto string, to netip.AddrPort) (name string, seen, own netip.AddrPort, err error) {
	tb.Helper()
	c, err := dial(tb, from, netip.AddrPort{}, proto, to)
	if err != nil {
		return "", seen, own, err
	}
	defer func() { _ = c.Close() }()
	name, seen, err = ask(c)
	return name, seen, netip.MustParseAddrPort(c.LocalAddr().String()), err
}
