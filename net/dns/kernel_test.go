// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

// client is the container c1 on the networks.
func client(path string, networks ...string) dns.Client {
	return dns.Client{ID: "c1", Namespace: path, Networks: networks}
}

var server = net.JoinHostPort(dns.Address, "53")

// ask asks for an IPv4 address from inside the container, by udp or tcp.
func ask(tb testing.TB, path, network, name string) *wire.Msg {
	tb.Helper()
	return send(tb, path, network, new(wire.Msg).SetQuestion(wire.Fqdn(name), wire.TypeA))
}

func send(tb testing.TB, path, network string, m *wire.Msg) (reply *wire.Msg) {
	tb.Helper()
	within(tb, path, func() (err error) {
		c := &wire.Client{Net: network, Timeout: 10 * time.Second, UDPSize: wire.MinMsgSize}
		reply, _, err = c.Exchange(m, server)
		return err
	})
	return reply
}

// serveUpstream makes a name server in the namespace, at an address there.
func serveUpstream(tb testing.TB, path string, u upstream) netip.AddrPort {
	tb.Helper()
	var packets net.PacketConn
	var streams net.Listener
	within(tb, path, func() (err error) {
		if streams, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return err
		}
		packets, err = net.ListenPacket("udp4", streams.Addr().String())
		return err
	})
	for network, s := range map[string]*wire.Server{"udp": {PacketConn: packets}, "tcp": {Listener: streams}} {
		s.Handler = wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
			if reply := u(network, m); reply != nil {
				_ = w.WriteMsg(reply)
			}
		})
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		<-ready
		tb.Cleanup(func() {
			_ = s.Shutdown()
			if err := <-done; err != nil {
				tb.Error(err)
			}
		})
	}
	return netip.MustParseAddrPort(streams.Addr().String())
}

// own is the namespace of the test, as a path.
const own = "/proc/self/ns/net"

func TestResolver_AnswersBesideAServerOfTheContainersOwn(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	within(t, ns, func() error {
		packets, err := net.ListenPacket("udp4", "0.0.0.0:53")
		if err != nil {
			return err
		}
		streams, err := net.Listen("tcp4", "0.0.0.0:53")
		if err != nil {
			return errors.Join(err, packets.Close())
		}
		for network, s := range map[string]*wire.Server{"udp": {PacketConn: packets}, "tcp": {Listener: streams}} {
			s.Handler = wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
				_ = w.WriteMsg(answering("203.0.113.1")(network, m))
			})
			ready := make(chan struct{})
			s.NotifyStartedFunc = func() { close(ready) }
			go func() { _ = s.ActivateAndServe() }()
			<-ready
			t.Cleanup(func() { _ = s.Shutdown() })
		}
		return nil
	})
	for _, network := range []string{"udp", "tcp"} {
		if got := text(ask(t, ns, network, "web")); got != "NOERROR 60:10.0.1.2" {
			t.Errorf("by %s: got %s", network, got)
		}
		within(t, ns, func() error {
			c := &wire.Client{Net: network}
			reply, _, err := c.Exchange(new(wire.Msg).SetQuestion("web.", wire.TypeA), "127.0.0.1:53")
			if err != nil {
				return err
			}
			if got := text(reply); got != "NOERROR 30:203.0.113.1" {
				t.Errorf("the container's own server, by %s: got %s", network, got)
			}
			return nil
		})
	}
}

func TestResolver_CutsAnswersAndHasTheClientComeByStream(t *testing.T) {
	w := newWorld(t)
	w.Set(state(crowd(300)))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	if m := ask(t, ns, "udp", "tasks.web"); !m.Truncated || len(m.Answer) != 30 {
		t.Errorf("by udp: got %d records, cut %t", len(m.Answer), m.Truncated)
	}
	if m := ask(t, ns, "tcp", "tasks.web"); m.Truncated || len(m.Answer) != 300 {
		t.Errorf("by tcp: got %d records, cut %t", len(m.Answer), m.Truncated)
	}
	m := new(wire.Msg).SetQuestion("tasks.web.", wire.TypeA)
	m.SetEdns0(4096, false)
	if m := send(t, ns, "udp", m); !m.Truncated || len(m.Answer) != 253 {
		t.Errorf("by udp with edns: got %d records, cut %t", len(m.Answer), m.Truncated)
	}
}

func TestResolver_FollowsTheStateAndTheClient(t *testing.T) {
	w := newWorld(t, serveUpstream(t, own, failing(wire.RcodeNameError)))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	steps := []struct {
		do   func()
		want string
	}{
		{func() {}, "NXDOMAIN"},
		{func() { w.Set(state(shop())) }, "NOERROR 60:10.0.1.2"},
		{func() { w.Set(state(shop(), back())) }, "NOERROR 60:10.0.1.2"},
		{func() { w.open(t, client(ns, "n2", "n1")) }, "NOERROR 60:10.0.2.2"},
		{func() { w.Set(state(back())) }, "NOERROR 60:10.0.2.2"},
		{func() { w.open(t, client(ns)) }, "NXDOMAIN"},
	}
	for i, s := range steps {
		s.do()
		if got := text(ask(t, ns, "udp", "web")); got != s.want {
			t.Errorf("step %d: got %s, want %s", i, got, s.want)
		}
	}
}

func TestResolver_AsksTheNodesServersFromTheNode(t *testing.T) {
	var mu sync.Mutex
	var questions []string
	w := newWorld(t, serveUpstream(t, own, func(network string, m *wire.Msg) *wire.Msg {
		mu.Lock()
		defer mu.Unlock()
		questions = append(questions, network)
		return answering("198.51.100.7")(network, m)
	}))
	ns := container(t)
	w.open(t, client(ns))
	for _, network := range []string{"udp", "tcp"} {
		if got := text(ask(t, ns, network, "example.com")); got != "NOERROR 30:198.51.100.7" {
			t.Errorf("by %s: got %s", network, got)
		}
	}
	if !slices.Equal(questions, []string{"udp", "tcp"}) {
		t.Errorf("the server was asked by %v", questions)
	}
}

func TestResolver_AsksTheUsersServersFromTheContainer(t *testing.T) {
	w := newWorld(t, serveUpstream(t, own, answering("198.51.100.7")))
	ns := container(t)
	c := client(ns)
	c.Upstreams = []netip.AddrPort{serveUpstream(t, ns, answering("198.51.100.8"))}
	w.open(t, c)
	for _, network := range []string{"udp", "tcp"} {
		if got := text(ask(t, ns, network, "example.com")); got != "NOERROR 30:198.51.100.8" {
			t.Errorf("by %s: got %s", network, got)
		}
	}
}

func TestResolver_AsksNobodyForAnInternalClient(t *testing.T) {
	w := newWorld(t, serveUpstream(t, own, answering("198.51.100.7")))
	w.Set(state(shop()))
	ns := container(t)
	c := client(ns, "n1")
	c.Internal = true
	c.Upstreams = []netip.AddrPort{serveUpstream(t, ns, answering("198.51.100.8"))}
	w.open(t, c)
	start := time.Now()
	for name, want := range map[string]string{
		"web": "NOERROR 60:10.0.1.2", "example.com": "SERVFAIL", "nobody": "SERVFAIL", "tasks.nobody": "NXDOMAIN",
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := text(ask(t, ns, network, name)); got != want {
				t.Errorf("%s by %s: got %s, want %s", name, network, got, want)
			}
		}
	}
	if took := time.Since(start); took > dns.Patience {
		t.Errorf("took %v", took)
	}
}

func TestOpen_FollowsAContainerIntoAnotherNamespace(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	first, second := container(t), container(t)
	for _, ns := range []string{first, second} {
		w.open(t, client(ns, "n1"))
		if got := text(ask(t, ns, "udp", "web")); got != "NOERROR 60:10.0.1.2" {
			t.Errorf("got %s", got)
		}
	}
}

func TestOpen_RefusesWhatItCannotServe(t *testing.T) {
	w := newWorld(t)
	for _, c := range []dns.Client{
		{ID: "", Namespace: container(t)},
		{ID: "../c1", Namespace: container(t)},
		{ID: "c1", Namespace: filepath.Join(t.TempDir(), "none")},
	} {
		if err := w.Open(t.Context(), c); err == nil {
			t.Errorf("opened %q in %q", c.ID, c.Namespace)
		}
	}
}

func TestRetain_ShutsTheOthers(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	spaces := map[string]string{}
	for _, id := range []string{"c1", "c2", "c3"} {
		spaces[id] = container(t)
		w.open(t, dns.Client{ID: id, Namespace: spaces[id], Networks: []string{"n1"}})
	}
	if err := os.WriteFile(filepath.Join(w.config.RunDir, "dns", "earlier"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Shut("c3")
	w.Shut("c3")
	w.Retain([]string{"c2", "later"})
	entries, err := os.ReadDir(filepath.Join(w.config.RunDir, "dns"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "c2" {
		t.Errorf("ports are kept of %v", entries)
	}
	for id, ns := range spaces {
		within(t, ns, func() error {
			b, err := os.ReadFile("/proc/thread-self/net/udp")
			if open := strings.Contains(string(b), "0B00007F:"); open != (id == "c2") {
				t.Errorf("%s is open: %t", id, open)
			}
			return err
		})
	}
	if got := text(ask(t, spaces["c2"], "udp", "web")); got != "NOERROR 60:10.0.1.2" {
		t.Errorf("got %s", got)
	}
}

func TestResolver_BoundsConnections(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	within(t, ns, func() error {
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				_ = c.Close()
			}
		}()
		for range dns.MaxConnections {
			c, err := net.Dial("tcp4", server)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		for i, c := range conns {
			conn := &wire.Conn{Conn: c}
			// Two at once, and one in pieces.
			for range 2 {
				if err := conn.WriteMsg(new(wire.Msg).SetQuestion("web.", wire.TypeA)); err != nil {
					return err
				}
			}
			for range 2 {
				if m, err := conn.ReadMsg(); err != nil || text(m) != "NOERROR 60:10.0.1.2" {
					return fmt.Errorf("connection %d: %v %w", i, m, err)
				}
			}
		}
		more, err := net.Dial("tcp4", server)
		if err != nil {
			return err
		}
		defer more.Close()
		_ = more.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err = more.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("one connection more than is allowed stays open")
		}
		return nil
	})
}

func TestResolver_BoundsWhatOneContainerAsksOthers(t *testing.T) {
	w := newWorld(t, serveUpstream(t, own, silent))
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	within(t, ns, func() error {
		conn, err := net.Dial("udp4", server)
		if err != nil {
			return err
		}
		defer conn.Close()
		known, last := question(t, "web", wire.TypeA), question(t, "last.example.com", wire.TypeA)
		b := make([]byte, 512)
		for range dns.MaxAskingEach {
			// What is known is answered meanwhile, and says that the other was read.
			_, err := conn.Write(question(t, "example.com", wire.TypeA))
			if err == nil {
				_, err = conn.Write(known)
			}
			if err == nil {
				_, err = conn.Read(b)
			}
			if err != nil {
				return err
			}
		}
		if _, err := conn.Write(last); err != nil {
			return err
		}
		// The others are told only when the time is up.
		_ = conn.SetReadDeadline(time.Now().Add(dns.AskTimeout / 2))
		n, err := conn.Read(b)
		if err != nil {
			return err
		}
		if m := unpack(t, b[:n]); m.Rcode != wire.RcodeServerFailure || m.Question[0].Name != "last.example.com." {
			t.Errorf("got %v", m)
		}
		return nil
	})
}
