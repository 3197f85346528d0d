// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"

	"skep/net/attach"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/nft"
	"skep/store/object"
)

func TestMain(m *testing.M) { linktest.Main(m) }

// node is a node's networks, and the directories that survive it.
type node struct {
	*attach.Attach
	config attach.Config
}

func newNode(tb testing.TB, scope string) *node {
	tb.Helper()
	dir := tb.TempDir()
	n := &node{config: attach.Config{
		Dir: filepath.Join(dir, "networks"), RunDir: filepath.Join(dir, "run"), Scope: scope,
		Name:   func(id string) string { return "name-of-" + id },
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
	a, err := attach.Open(tb.Context(), n.config)
	if err != nil {
		tb.Fatal(err)
	}
	n.Attach = a
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

// leavesNothing fails if the node left anything in the kernel or its run directory.
func (n *node) leavesNothing(tb testing.TB) {
	tb.Helper()
	for _, prefix := range []string{"v" + n.config.Scope, "sk" + n.config.Scope} {
		if left := devices(tb, prefix); len(left) > 0 {
			tb.Errorf("devices are left: %s", left)
		}
	}
	if _, ok := n.table(tb); ok {
		tb.Error("the table is left")
	}
	n.runsNothing(tb)
}

// runsNothing fails if there is a namespace or a record.
func (n *node) runsNothing(tb testing.TB) {
	tb.Helper()
	for _, pattern := range []string{"netns/*", "attach/*.json", "attach/.*.json"} {
		if left, _ := filepath.Glob(filepath.Join(n.config.RunDir, pattern)); len(left) > 0 {
			tb.Errorf("files are left: %s", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	if strings.Contains(string(mounts), n.config.RunDir) {
		tb.Errorf("mounts are left:\n%s", mounts)
	}
}

func (n *node) table(tb testing.TB) (nft.Table, bool) {
	tb.Helper()
	c, err := nft.Open()
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	table, ok, err := c.Read(nft.IPv4, "skep-"+n.config.Scope)
	if err != nil {
		tb.Fatal(err)
	}
	return table, ok
}

func devices(tb testing.TB, prefix string) []string {
	tb.Helper()
	c, err := link.Open()
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	names, err := c.Names(prefix)
	if err != nil {
		tb.Fatal(err)
	}
	return names
}

// connect makes a container on the bridge.
func (n *node) connect(tb testing.TB, id string, ports ...object.Port) box {
	tb.Helper()
	at, err := n.Connect(tb.Context(), object.Endpoint{ID: id, Network: "bridge", Ports: ports})
	if err != nil {
		tb.Fatal(err)
	}
	return box{at}
}

func port(proto network.IPProtocol, host, container uint16) object.Port {
	return object.Port{Protocol: proto, Host: host, Container: container}
}

// box is a container: its namespace is what matters here.
type box struct{ object.Attachment }

func (b box) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := link.Within(b.Namespace, f); err != nil {
		tb.Fatal(err)
	}
}

func (b box) addr(tb testing.TB) netip.Addr {
	tb.Helper()
	p, err := netip.ParsePrefix(b.Address)
	if err != nil {
		tb.Fatal(err)
	}
	return p.Addr()
}

// here is the node's own namespace.
type here struct{}

func (here) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := f(); err != nil {
		tb.Fatal(err)
	}
}

// place is where something may run.
type place interface {
	Within(tb testing.TB, f func() error)
}

// serve answers HTTP with who it is and who asks; and UDP the same.
func serve(tb testing.TB, at place, name string, port int) {
	tb.Helper()
	var l net.Listener
	var u net.PacketConn
	at.Within(tb, func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s", name, r.RemoteAddr)
	}), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{}, 2)
	go func() {
		_ = s.Serve(l)
		done <- struct{}{}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s", name, from), from)
		}
	}()
	tb.Cleanup(func() {
		_ = errors.Join(s.Close(), u.Close())
		<-done
		<-done
	})
}

const patience = 2 * time.Second

// dial connects from a place.
func dial(tb testing.TB, from place, proto, to string) (net.Conn, error) {
	tb.Helper()
	return dialWithin(tb, from, proto, to, patience)
}

// blocked fails if there is a way.
func blocked(tb testing.TB, from place, to string) {
	tb.Helper()
	c, err := dialWithin(tb, from, "tcp", to, patience/4)
	if err == nil {
		tb.Errorf("%s was reached", to)
		_ = c.Close()
	}
}

func dialWithin(tb testing.TB, from place, proto, to string, limit time.Duration) (net.Conn, error) {
	tb.Helper()
	var c net.Conn
	var failed error
	from.Within(tb, func() error {
		d := net.Dialer{Timeout: limit}
		c, failed = d.DialContext(tb.Context(), proto, to)
		return nil
	})
	return c, failed
}

// ask asks once over c and returns who answered, and whom it saw.
func ask(c net.Conn) (name, client string, err error) {
	if err = c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if c.LocalAddr().Network() == "udp" {
		if _, err = c.Write([]byte("hello")); err != nil {
			return "", "", err
		}
		b := make([]byte, 100)
		var n int
		n, err = c.Read(b)
		name, client, _ = strings.Cut(string(b[:n]), " ")
		return name, client, err
	}
	if _, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	name, client, _ = strings.Cut(string(b), " ")
	return name, client, err
}

// get connects and asks.
func get(tb testing.TB, from place, proto, to string) (name string, client netip.Addr, err error) {
	tb.Helper()
	c, err := dial(tb, from, proto, to)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer func() { _ = c.Close() }()
	name, who, err := ask(c)
	if err != nil {
		return "", netip.Addr{}, err
	}
	ap, err := netip.ParseAddrPort(who)
	return name, ap.Addr(), err
}

func mustGet(tb testing.TB, from place, proto, to, want string) netip.Addr {
	tb.Helper()
	name, client, err := get(tb, from, proto, to)
	if err != nil || name != want {
		tb.Errorf("%s %s: got %q, %v; want %q", proto, to, name, err, want)
	}
	return client
}

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }
