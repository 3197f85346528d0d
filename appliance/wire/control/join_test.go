package control_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/appliance/wire/control/controltest"
	"skep/pki"
	"skep/pki/join"
)

// impostor is a server that keeps what it is told.
type impostor struct {
	addr string
	mu   sync.Mutex
	told bytes.Buffer
}

func newImpostor(t *testing.T, cfg *tls.Config) *impostor {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &impostor{addr: ln.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer raw.Close()
				_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
				s.listen(tls.Server(raw, cfg))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
	return s
}

func (s *impostor) listen(c net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		s.mu.Lock()
		s.told.Write(b[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *impostor) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told.String()
}

// serving is the TLS of a server with an identity's certificate and more of a
// chain.
func serving(id *control.Identity, more ...[]byte) *tls.Config {
	c := id.Certificate
	c.Certificate = append(slices.Clip(c.Certificate), more...)
	return &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{"h2", "skep-raft/1"}, ClientAuth: tls.RequestClientCert}
}

func TestJoin_TellsNothingToImpostors(t *testing.T) {
	genuine, evil := controltest.NewSwarm(t, "swarm"), controltest.NewSwarm(t, "swarm")
	token := join.New(genuine.Root.Cert.Raw)
	root := genuine.Root.Cert.Raw
	old := serving(genuine.Manager(t, "m1", 1), root)
	old.MaxVersion = tls.VersionTLS12
	speechless := serving(genuine.Manager(t, "m1", 1), root)
	speechless.NextProtos = nil
	tests := []struct {
		name string
		tls  *tls.Config
		err  string
	}{
		{"another CA", serving(evil.Manager(t, "m1", 1), evil.Root.Cert.Raw), "remote CA does not match fingerprint. Expected: "},
		{"another CA that appends the genuine root", serving(evil.Manager(t, "m1", 1), evil.Root.Cert.Raw, root), "verify certificate"},
		{"another CA that appends only the genuine root", serving(evil.Manager(t, "m1", 1), root), "verify certificate"},
		{"no root in the chain", serving(genuine.Manager(t, "m1", 1)), "remote CA does not match fingerprint. Expected: "},
		{"a worker's certificate", serving(genuine.Worker(t, "w1", 1), root), "it is a worker's"},
		{"a certificate of a clock that is ahead", serving(genuine.Identity(t, "m1", pki.Manager, 1, -5*time.Hour, 24*time.Hour), root), "set it and try again"},
		{"an expired certificate", serving(genuine.Identity(t, "m1", pki.Manager, 1, 3*time.Hour, time.Hour), root), "expired"},
		{"TLS 1.2", old, "protocol version"},
		{"no h2", speechless, "does not speak h2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newImpostor(t, tt.tls)
			var resp reply
			err := control.Join(within(t, 5*time.Second), s.addr, token, "/join", &ask{token.Text()}, &resp)
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if got := s.heard(); got != "" {
				t.Errorf("the impostor was told %q", got)
			}
		})
	}
}

func TestDialer_TellsNothingToImpostors(t *testing.T) {
	genuine, evil := controltest.NewSwarm(t, "swarm"), controltest.NewSwarm(t, "swarm")
	sibling := &controltest.Swarm{Root: genuine.Root, Cluster: "another"}
	d := dialer(t, genuine.Worker(t, "w1", 1))
	for name, id := range map[string]*control.Identity{
		"another CA":             evil.Manager(t, "m1", 1),
		"another swarm":          sibling.Manager(t, "m1", 1),
		"another manager":        genuine.Manager(t, "m2", 1),
		"a worker":               genuine.Worker(t, "m1", 1),
		"an expired certificate": genuine.Identity(t, "m1", pki.Manager, 1, 3*time.Hour, time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			s := newImpostor(t, serving(id, evil.Root.Cert.Raw, genuine.Root.Cert.Raw))
			to := wire.Peer{NodeID: "m1", Addr: s.addr}
			if _, err := control.Call[ask, reply](within(t, 5*time.Second), d, to, "/echo", &ask{"secret"}); err == nil {
				t.Error("no error")
			}
			if got := s.heard(); got != "" {
				t.Errorf("the impostor was told %q", got)
			}
		})
	}
}

func TestPort_RefusesOtherProtocols(t *testing.T) {
	w := newWorld(t, control.Route{For: []control.Class{control.Anonymous}, Pattern: "POST /join", Handler: control.Handle(echo)})
	for name, cfg := range map[string]*tls.Config{
		"no protocol":           {},
		"http/1.1":              {NextProtos: []string{"http/1.1"}},
		"a stranger's":          {NextProtos: []string{"spdy/3"}},
		"TLS 1.2":               {NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12},
		"raft, and who is that": {NextProtos: []string{"skep-raft/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.InsecureSkipVerify = true
			conn, err := tls.Dial("tcp", w.peer.Addr, cfg)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			_, _ = io.WriteString(conn, "POST /a/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
			if n, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("got %d bytes, %v", n, err)
			}
		})
	}
}

// Strangers get eight connections from one address, and a handshake that does
// not come ends.
func TestPort_LimitsStrangers(t *testing.T) {
	w := newWorld(t, control.Route{For: []control.Class{control.Anonymous}, Pattern: "POST /join", Handler: control.Handle(echo)})
	mute, err := net.Dial("tcp", w.peer.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	began := time.Now()
	dial := func() (net.Conn, bool) {
		conn, err := tls.Dial("tcp", w.peer.Addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			return nil, false
		}
		// A server that wants to talk h2 sends its settings at once.
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		_, err = conn.Read(make([]byte, 1))
		return conn, err == nil
	}
	var open []net.Conn
	for range 8 {
		conn, ok := dial()
		if !ok {
			t.Fatalf("connection %d was refused", len(open)+1)
		}
		open = append(open, conn)
	}
	if conn, ok := dial(); ok {
		_ = conn.Close()
		t.Error("there is room for a ninth")
	}
	token := join.New(w.Root.Cert.Raw)
	knock := func() error {
		return control.Join(within(t, 5*time.Second), w.peer.Addr, token, "/join", &ask{}, new(reply))
	}
	if err := knock(); err == nil {
		t.Error("there is room for a joiner")
	}
	w.book.set("w1", pki.Worker, 0)
	_, err = control.Call[ask, reply](within(t, 5*time.Second), dialer(t, w.Worker(t, "w1", 3)), w.peer, "/nothing", &ask{})
	if err == nil || !strings.Contains(err.Error(), "this manager has no POST /w/v1/nothing") {
		t.Errorf("a node at the same address is not served: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	for end := time.Now().Add(2 * time.Second); err != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		err = knock()
	}
	if err != nil {
		t.Errorf("there is no room after the others have gone: %v", err)
	}
	_ = mute.SetReadDeadline(began.Add(6 * time.Second))
	if _, err := mute.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("handshake that does not come: after %s %v", time.Since(began), err)
	}
	// What strangers send is small.
	if err := control.Join(within(t, 5*time.Second), w.peer.Addr, token, "/join", &ask{strings.Repeat("x", 65<<10)}, new(reply)); err == nil {
		t.Error("a stranger's long request was taken")
	}
}
