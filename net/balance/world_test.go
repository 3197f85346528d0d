// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/balance"
	"skep/net/link"
)

// world is a network of machines, and one that balances: for itself, or for a
// client behind it.
//
//	client 10.1.0.2 -- 10.1.0.1 balancing 10.0.9.10 -- switch -- 10.0.9.20… backends
type world struct {
	*balance.Balancer
	config balance.Config
	// from is the namespace whose connections are balanced.
	from     string
	node     *host
	client   *host
	backends []*host
}

// host is a machine on the network.
type host struct {
	name, path string
	v4, v6     netip.Addr
}

const (
	vip4 = "10.0.9.2"
	vip6 = "fd00:9::2"
	// The node's addresses that the client sends to.
	node4 = "10.1.0.1"
	node6 = "fd00:1::1"
)

// newWorld makes the network and a balancer. At the address given (of vip4 or,
// where connections are forwarded, node4) clients find it.
func newWorld(tb testing.TB, mode balance.Mode, where balance.Where, backends int) *world {
	tb.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch", TxQLen: -1}}
	try(tb, netlink.LinkAdd(bridge))
	try(tb, netlink.LinkSetUp(bridge))
	tb.Cleanup(func() { _ = netlink.LinkDel(bridge) })
	w := &world{node: newHost(tb, bridge, "node", 10), client: newHost(tb, nil, "client", 0)}
	for i := range backends {
		h := newHost(tb, bridge, fmt.Sprintf("b%d", i), 20+i)
		h.within(tb, func() error { return route("eth0", w.node) })
		w.backends = append(w.backends, h)
	}
	w.cable(tb)
	w.config = balance.Config{
		Namespace: w.node.path, Table: "skep-test", Where: where, Mode: mode,
		Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
	w.from = w.node.path
	if where == balance.Forwarded {
		w.config.Device, w.from = "cable", w.client.path
	}
	w.open(tb)
	return w
}

func (w *world) open(tb testing.TB) {
	tb.Helper()
	b, err := balance.Open(tb.Context(), w.config)
	if err != nil {
		tb.Fatal(err)
	}
	w.Balancer = b
	tb.Cleanup(func() { _ = b.Close() })
}

// set is Set, which must succeed.
func (w *world) set(tb testing.TB, services ...balance.Service) {
	tb.Helper()
	try(tb, w.Set(tb.Context(), services))
}

func newHost(tb testing.TB, bridge *netlink.Bridge, name string, n int) *host {
	tb.Helper()
	h := &host{
		name: name, path: filepath.Join(tb.TempDir(), name),
		v4: netip.MustParseAddr(fmt.Sprintf("10.0.9.%d", n)), v6: netip.MustParseAddr(fmt.Sprintf("fd00:9::%x", n)),
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	try(tb, err)
	defer here.Close()
	try(tb, link.Create(h.path, func() error {
		// A router asks for neighbours by its link-local address, when that is known
		// to be nobody else's: without asking, at once.
		err := errors.Join(link.Loopback(), link.Sysctl("net/ipv6/conf/default/accept_dad", "0"))
		if err != nil || bridge == nil {
			return err
		}
		self, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer func() { _ = self.Close() }()
		err = here.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "p-" + name, TxQLen: -1, Flags: net.FlagUp, MasterIndex: bridge.Index},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(self.Fd()), PeerTxQLen: -1,
		})
		return errors.Join(err, address2("eth0", h.v4, h.v6), settle(here, "p-"+name))
	}))
	tb.Cleanup(func() {
		if l, err := netlink.LinkByName("p-" + name); err == nil {
			_ = netlink.LinkDel(l)
		}
		try(tb, link.Remove(h.path))
	})
	return h
}

// cable joins the client to the node, which forwards for it.
func (w *world) cable(tb testing.TB) {
	tb.Helper()
	other, err := os.Open(w.client.path)
	try(tb, err)
	defer func() { _ = other.Close() }()
	w.node.within(tb, func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "cable", TxQLen: -1, Flags: net.FlagUp}, PeerName: "eth0", PeerNamespace: netlink.NsFd(other.Fd()), PeerTxQLen: -1,
		})
		return errors.Join(err, link.Sysctl("net/ipv4/ip_forward", "1"), link.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	})
	w.client.v4, w.client.v6 = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	gateway := &host{v4: netip.MustParseAddr(node4), v6: netip.MustParseAddr(node6)}
	w.client.within(tb, func() error {
		return errors.Join(address2("eth0", w.client.v4, w.client.v6), route("eth0", gateway))
	})
	// Last, when both ends are up.
	w.node.within(tb, func() error { return address2("cable", gateway.v4, gateway.v6) })
}

// address2 gives a device of this thread's namespace its addresses, /24 and /64.
func address2(device string, v4, v6 netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	return errors.Join(
		h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: v4.AsSlice(), Mask: net.CIDRMask(24, 32)}}),
		h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: v6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}),
		h.LinkSetUp(l), settle(h, device))
}

// settle makes the kernel act on a carrier that has come: until then it drops
// what is sent.
func settle(h *netlink.Handle, device string) error {
	_, err := h.LinkByName(device)
	return err
}

// route leads everything to a gateway.
func route(device string, by *host) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	return errors.Join(
		h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: by.v4.AsSlice()}),
		h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: by.v6.AsSlice()}))
}

func (h *host) within(tb testing.TB, f func() error) {
	tb.Helper()
	try(tb, link.Within(h.path, f))
}

// serve answers each line, by TCP and UDP, with the host's name, the port asked
// and the client's address.
func (h *host) serve(tb testing.TB, ports ...uint16) {
	tb.Helper()
	for _, port := range ports {
		h.within(tb, func() error {
			l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			p, err := (&net.ListenConfig{}).ListenPacket(tb.Context(), "udp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			tb.Cleanup(func() { _, _ = l.Close(), p.Close() })
			go h.accept(l, port) // ends with the listener
			go h.answer(p, port) // ends with the socket
			return nil
		})
	}
}

func (h *host) accept(l net.Listener, port uint16) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		// Ends with the connection.
		go func() {
			defer func() { _ = c.Close() }()
			for in := bufio.NewScanner(c); in.Scan(); {
				fmt.Fprintf(c, "%s %d %s\n", h.name, port, c.RemoteAddr())
			}
		}()
	}
}

func (h *host) answer(p net.PacketConn, port uint16) {
	b := make([]byte, 100)
	for {
		_, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(fmt.Appendf(nil, "%s %d %s\n", h.name, port, from), from)
	}
}

// dial connects from a namespace.
func dial(from, network, to string, patience time.Duration) (c net.Conn, err error) {
	err = link.Within(from, func() (err error) {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

func (w *world) dial(tb testing.TB, network, to string) net.Conn {
	tb.Helper()
	c, err := dial(w.from, network, to, 10*time.Second)
	try(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a line and returns the words of the answer: who, at which port, to whom.
func ask(c net.Conn, patience time.Duration) ([]string, error) {
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b[:n])), nil
}

func asked(tb testing.TB, c net.Conn) []string {
	tb.Helper()
	words, err := ask(c, 10*time.Second)
	if err != nil || len(words) != 3 {
		tb.Fatalf("asked %s: %q, %v", c.RemoteAddr(), words, err)
	}
	return words
}

// who makes a connection, asks once and closes it.
func (w *world) who(tb testing.TB, network, to string) []string {
	tb.Helper()
	c := w.dial(tb, network, to)
	defer func() { _ = c.Close() }()
	return asked(tb, c)
}

// cutOff reports whether an answer's failure is a reset.
func cutOff(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func try(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
