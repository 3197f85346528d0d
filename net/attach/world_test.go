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

func newNode(t testing.TB, scope string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{config: attach.Config{
		Dir: filepath.Join(dir, "networks"), RunDir: filepath.Join(dir, "run"), Scope: scope,
		Name:   func(id string) string { return "name-of-" + id },
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	n.open(t)
	t.Cleanup(func() {
		if err := n.Destroy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		n.close(t)
		n.leavesNothing(t)
	})
	return n
}

func (n *node) open(t testing.TB) {
	t.Helper()
	a, err := attach.Open(t.Context(), n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.Attach = a
}

func (n *node) close(t testing.TB) {
	t.Helper()
	if err := n.Attach.Close(); err != nil {
		t.Error(err)
	}
}

// restart is what a new process does after the old one was killed.
func (n *node) restart(t testing.TB) {
	t.Helper()
	n.close(t)
	n.open(t)
}

// leavesNothing fails if the node left anything in the kernel or its run directory.
func (n *node) leavesNothing(t testing.TB) {
	t.Helper()
	for _, prefix := range []string{"v" + n.config.Scope, "sk" + n.config.Scope} {
		if left := devices(t, prefix); len(left) > 0 {
			t.Errorf("devices are left: %s", left)
		}
	}
	if _, ok := n.table(t); ok {
		t.Error("the table is left")
	}
	n.runsNothing(t)
}

// runsNothing fails if there is a namespace or a record.
func (n *node) runsNothing(t testing.TB) {
	t.Helper()
	for _, pattern := range []string{"netns/*", "attach/*.json", "attach/.*.json"} {
		if left, _ := filepath.Glob(filepath.Join(n.config.RunDir, pattern)); len(left) > 0 {
			t.Errorf("files are left: %s", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.config.RunDir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}

func (n *node) table(t testing.TB) (nft.Table, bool) {
	t.Helper()
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	table, ok, err := c.Read("skep-" + n.config.Scope)
	if err != nil {
		t.Fatal(err)
	}
	return table, ok
}

func devices(t testing.TB, prefix string) []string {
	t.Helper()
	c, err := link.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	names, err := c.Names(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// connect makes a container on the bridge.
func (n *node) connect(t testing.TB, id string, ports ...object.Port) box {
	t.Helper()
	at, err := n.Connect(t.Context(), object.Endpoint{ID: id, Network: "bridge", Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	return box{at}
}

func port(proto network.IPProtocol, host, container uint16) object.Port {
	return object.Port{Protocol: proto, Host: host, Container: container}
}

func shared(host, container uint16) object.Port {
	return object.Port{Protocol: network.TCP, Host: host, Container: container, Shared: true}
}

// box is a container: its namespace is what matters here.
type box struct{ object.Attachment }

func (b box) Within(t testing.TB, f func() error) {
	t.Helper()
	if err := link.Within(b.Namespace, f); err != nil {
		t.Fatal(err)
	}
}

func (b box) addr(t testing.TB) netip.Addr {
	t.Helper()
	p, err := netip.ParsePrefix(b.Address)
	if err != nil {
		t.Fatal(err)
	}
	return p.Addr()
}

// here is the node's own namespace.
type here struct{}

func (here) Within(t testing.TB, f func() error) {
	t.Helper()
	if err := f(); err != nil {
		t.Fatal(err)
	}
}

// place is where something may run.
type place interface {
	Within(t testing.TB, f func() error)
}

// serve answers HTTP with who it is and who asks; and UDP the same.
func serve(t testing.TB, at place, name string, port int) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	at.Within(t, func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", name, r.RemoteAddr)
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
	t.Cleanup(func() {
		_ = errors.Join(s.Close(), u.Close())
		<-done
		<-done
	})
}

const patience = 2 * time.Second

// dial connects from a place.
func dial(t testing.TB, from place, proto, to string) (net.Conn, error) {
	t.Helper()
	return dialWithin(t, from, proto, to, patience)
}

// blocked fails if there is a way.
func blocked(t testing.TB, from place, to string) {
	t.Helper()
	c, err := dialWithin(t, from, "tcp", to, patience/4)
	if err == nil {
		t.Errorf("%s was reached", to)
		_ = c.Close()
	}
}

func dialWithin(t testing.TB, from place, proto, to string, limit time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var failed error
	from.Within(t, func() error {
		d := net.Dialer{Timeout: limit}
		c, failed = d.DialContext(t.Context(), proto, to)
		return nil
	})
	return c, failed
}

// ask asks once over c and returns who answered, and whom it saw.
func ask(c net.Conn) (name, client string, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if c.LocalAddr().Network() == "udp" {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		name, client, _ = strings.Cut(string(b[:n]), " ")
		return name, client, err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	name, client, _ = strings.Cut(string(b), " ")
	return name, client, err
}

// get connects and asks.
func get(t testing.TB, from place, proto, to string) (name string, client netip.Addr, err error) {
	t.Helper()
	c, err := dial(t, from, proto, to)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer c.Close()
	name, who, err := ask(c)
	if err != nil {
		return "", netip.Addr{}, err
	}
	ap, err := netip.ParseAddrPort(who)
	return name, ap.Addr(), err
}

func mustGet(t testing.TB, from place, proto, to, want string) netip.Addr {
	t.Helper()
	name, client, err := get(t, from, proto, to)
	if err != nil || name != want {
		t.Errorf("%s %s: got %q, %v; want %q", proto, to, name, err, want)
	}
	return client
}

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }
