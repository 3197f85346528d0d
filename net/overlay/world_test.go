// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/link/umltest"
	"skep/net/overlay"
)

func TestMain(m *testing.M) { umltest.Main(m, linktest.Main) }

// node is a machine with its part of the overlays.
type node struct {
	*overlay.Overlay
	*linktest.Machine
	config overlay.Config
}

func newNode(tb testing.TB, sw *linktest.Switch) *node {
	tb.Helper()
	m := sw.Machine(tb)
	var n *node
	tb.Cleanup(func() { n.hasOnlyItsOwn(tb) }) // after it has been destroyed
	n = newNodeOn(tb, m)
	return n
}

func newNodeOn(tb testing.TB, m *linktest.Machine) *node {
	tb.Helper()
	n := &node{Machine: m, config: overlay.Config{
		RunDir: filepath.Join(tb.TempDir(), "run"), Scope: "abcdef",
		Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}}
	n.open(tb)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
		defer cancel()
		if err := n.Destroy(ctx); err != nil {
			tb.Error(err)
		}
		n.shut(tb)
		n.leavesNothing(tb)
	})
	return n
}

func (n *node) open(tb testing.TB) {
	tb.Helper()
	n.Within(tb, func() (err error) {
		n.Overlay, err = overlay.Open(tb.Context(), n.config)
		return err
	})
}

func (n *node) shut(tb testing.TB) {
	tb.Helper()
	if err := n.Close(); err != nil {
		tb.Error(err)
	}
}

// restart is what a new process does after the old one was killed.
func (n *node) restart(tb testing.TB) {
	tb.Helper()
	n.shut(tb)
	n.open(tb)
}

// leavesNothing fails if anything is left on disk or mounted.
func (n *node) leavesNothing(tb testing.TB) {
	tb.Helper()
	if left, err := os.ReadDir(n.config.RunDir); err == nil && len(left) > 0 {
		tb.Errorf("files are left: %s", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	if strings.Contains(string(mounts), n.config.RunDir) {
		tb.Errorf("mounts are left:\n%s", mounts)
	}
}

// hasOnlyItsOwn fails if there are devices on the machine itself but its own.
func (n *node) hasOnlyItsOwn(tb testing.TB) {
	tb.Helper()
	n.Within(tb, func() error {
		ifs, err := net.Interfaces()
		if len(ifs) != 2 {
			tb.Errorf("devices are left on the machine: %v", ifs)
		}
		return err
	})
}

func (n *node) set(tb testing.TB, networks ...*overlay.Network) {
	tb.Helper()
	if err := n.Set(tb.Context(), networks); err != nil {
		tb.Fatal(err)
	}
}

// right fails if the kernel has anything else of the network than was set.
func (n *node) right(tb testing.TB, network string) {
	tb.Helper()
	st, err := n.Inspect(tb.Context(), network)
	if err != nil {
		tb.Fatal(err)
	}
	if len(st.Missing)+len(st.Superfluous)+len(st.Faults) > 0 {
		tb.Errorf("network %s: missing %v, superfluous %v, faults %q\n%s", network, st.Missing, st.Superfluous, st.Faults, st.Text)
	}
}

// box is a container: a namespace, and its place on a network.
type box struct {
	overlay.Attachment
	node *node
}

func (b *box) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := link.Within(b.Namespace, f); err != nil {
		tb.Fatal(err)
	}
}

func (b *box) addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range b.Addresses {
		out = append(out, p.Addr())
	}
	return out
}

func (b *box) peer() overlay.Peer {
	return overlay.Peer{Addresses: b.addrs(), MAC: b.MAC, VTEP: b.node.Address}
}

// newNamespace is a container that is on no network.
func newNamespace(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "ns")
	if err := link.Create(path, link.Loopback); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := link.Remove(path); err != nil {
			tb.Error(err)
		}
	})
	return path
}

// attach makes a container with these addresses.
func (n *node) attach(tb testing.TB, id, network string, addrs ...string) *box {
	tb.Helper()
	return n.attachIn(tb, newNamespace(tb), "eth0", id, network, addrs...)
}

func (n *node) attachIn(tb testing.TB, ns, device, id, network string, addrs ...string) *box {
	tb.Helper()
	b := &box{overlay.Attachment{ID: id, Network: network, Namespace: ns, Interface: device}, n}
	for _, a := range addrs {
		b.Addresses = append(b.Addresses, netip.MustParsePrefix(a))
	}
	b.MAC = overlay.MAC(b.addrs())
	if err := n.Attach(tb.Context(), b.Attachment); err != nil {
		tb.Fatal(err)
	}
	return b
}

// place is where something may run.
type place interface {
	Within(tb testing.TB, f func() error)
}

const serverPort = 7000

// serve echoes TCP and UDP on all addresses of a place.
func serve(tb testing.TB, at place) {
	tb.Helper()
	var l net.Listener
	var u net.PacketConn
	at.Within(tb, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", serverPort)); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", serverPort))
		return err
	})
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 65536)
		for {
			size, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:size], from)
		}
	}()
	tb.Cleanup(func() {
		_ = errors.Join(l.Close(), u.Close())
		<-done
		<-done
	})
}

const patience = 10 * time.Second

// dial connects from a place to the server at an address.
func dial(tb testing.TB, from place, proto string, to netip.Addr, limit time.Duration) (net.Conn, error) {
	tb.Helper()
	var c net.Conn
	var failed error
	from.Within(tb, func() error {
		d := net.Dialer{Timeout: limit}
		c, failed = d.DialContext(tb.Context(), proto, netip.AddrPortFrom(to, serverPort).String())
		return nil
	})
	return c, failed
}

// reach sends as much, and fails if it does not come back.
func reach(tb testing.TB, from place, proto string, to netip.Addr, size int) {
	tb.Helper()
	c, err := dial(tb, from, proto, to, patience)
	if err != nil {
		tb.Errorf("reach %s: %v", to, err)
		return
	}
	defer func() { _ = c.Close() }()
	if err := echo(c, size); err != nil {
		tb.Errorf("%s to %s, %d bytes: %v", proto, to, size, err)
	}
}

func echo(c net.Conn, size int) error {
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	_, err := io.ReadFull(c, got)
	if err = errors.Join(err, <-failed); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes came back")
	}
	return nil
}

// unreachable fails if there is a way.
func unreachable(tb testing.TB, from place, to netip.Addr) {
	tb.Helper()
	c, err := dial(tb, from, "tcp", to, 300*time.Millisecond)
	if err == nil {
		tb.Errorf("%s was reached", to)
		_ = c.Close()
	}
}

// mustLink finds a device of the thread's namespace. It may be called within
// another, where a test cannot be ended.
func mustLink(tb testing.TB, name string) netlink.Link {
	tb.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		tb.Error(err)
		return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}}
	}
	return l
}
