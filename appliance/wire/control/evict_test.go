package control_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/appliance/wire/control/controltest"
	"skep/pki"
)

// dies waits for a connection's end.
func dies(t *testing.T, what string, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := io.ReadFull(c, make([]byte, 1))
	if ne, ok := errors.AsType[net.Error](err); err == nil || (ok && ne.Timeout()) {
		t.Errorf("%s is alive after a second: %v", what, err)
	}
}

// lives says something to an echoing connection.
func lives(t *testing.T, what string, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func open(t *testing.T, d *control.Dialer, to wire.Peer) net.Conn {
	t.Helper()
	c, err := d.Stream(within(t, 5*time.Second), to, "/streams/a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestReview_CutsOff(t *testing.T) {
	ended := make(chan string, 10)
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(
		func(ctx context.Context, from pki.Node, r *http.Request, conn net.Conn) error {
			defer func() { ended <- from.ID }()
			return echoStream(ctx, from, r, conn)
		})})
	for _, tt := range []struct {
		name, id string
		role     string
		cut      func()
	}{
		{"removed worker", "w1", pki.Worker, func() { w.book.remove("w1") }},
		{"removed manager", "m2", pki.Manager, func() { w.book.remove("m2") }},
		{"demoted manager", "m3", pki.Manager, func() { w.book.set("m3", pki.Worker, 9) }},
		{"worker whose certificate is taken back", "w2", pki.Worker, func() { w.book.set("w2", pki.Worker, 9) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.book.set(tt.id, tt.role, 0)
			w.book.set("bystander", tt.role, 0)
			d := dialer(t, w.Identity(t, tt.id, tt.role, 3, 0, time.Hour))
			c := open(t, d, w.peer)
			other := open(t, dialer(t, w.Identity(t, "bystander", tt.role, 3, 0, time.Hour)), w.peer)
			lives(t, "stream", c)
			lives(t, "bystander", other)
			w.port.Review()
			lives(t, "stream after a review without news", c)
			tt.cut()
			w.port.Review()
			dies(t, "stream", c)
			select {
			case id := <-ended:
				if id != tt.id {
					t.Errorf("the stream of %s ended", id)
				}
			case <-time.After(time.Second):
				t.Error("the handler has not returned after a second")
			}
			lives(t, "bystander", other)
			if _, err := d.Stream(within(t, 5*time.Second), w.peer, "/streams/a"); err == nil {
				t.Error("a cut off node opened another stream")
			}
			_ = other.Close()
			<-ended
		})
	}
}

// A class is judged at every request, not only when somebody calls Review.
func TestGate_JudgesEveryRequest(t *testing.T) {
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /echo", Handler: control.Handle(echo)})
	w.book.set("w1", pki.Worker, 0)
	d := dialer(t, w.Worker(t, "w1", 3))
	call := func() error {
		_, err := control.Call[ask, reply](within(t, 5*time.Second), d, w.peer, "/echo", &ask{})
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	w.book.remove("w1")
	if err := call(); err == nil {
		t.Error("a removed node was served")
	}
	w.book.set("w1", pki.Worker, 0)
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = call(); err == nil {
			return
		}
	}
	t.Errorf("a node that came back is not served: %v", err)
}

func TestReview_CutsOffRaft(t *testing.T) {
	m := newTrio(t)
	a, b := m.pair(t, 0, 1) // dialed by m1
	c, d := m.pair(t, 2, 0) // dialed by m3
	m.book.set("m2", pki.Worker, 9)
	m.ports[0].Review()
	dies(t, "connection to the demoted member", a)
	dies(t, "connection from a member that demoted it", b)
	if err := exchange(c, d); err != nil {
		t.Errorf("connection of other members: %v", err)
	}
	m.book.remove("m3")
	m.ports[0].Review()
	dies(t, "connection from the removed member", d)
	dies(t, "connection at the removed member", c)
	if conn, err := m.layers[2].Dial("m1", 2*time.Second); err == nil {
		_ = conn.Close()
		t.Error("a removed member dialed")
	}
	if conn, err := m.layers[0].Dial("m3", 2*time.Second); err == nil {
		_ = conn.Close()
		t.Error("a member dialed a removed one")
	}
}

// Sessions are never resumed: what was verified once is verified again.
func TestPort_ResumesNothing(t *testing.T) {
	w := newWorld(t)
	w.book.set("m2", pki.Manager, 0)
	id := w.Manager(t, "m2", 3)
	cache := tls.NewLRUClientSessionCache(8)
	dial := func() (*tls.Conn, error) {
		pool := x509.NewCertPool()
		pool.AddCert(w.Root.Cert)
		conn, err := tls.Dial("tcp", w.peer.Addr, &tls.Config{
			RootCAs: pool, ServerName: pki.Manager, NextProtos: []string{"skep-raft/1"}, ClientSessionCache: cache,
			Certificates: []tls.Certificate{id.Certificate},
		})
		if err != nil {
			return nil, err
		}
		// A refusal comes with the first bytes; silence is consent.
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err = conn.Read(make([]byte, 1)); errors.Is(err, net.ErrClosed) || !isTimeout(err) {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	}
	for range 2 {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		_ = conn.Close()
	}
	w.book.remove("m2")
	if conn, err := dial(); err == nil {
		_ = conn.Close()
		t.Error("a removed member shook hands again")
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func TestConnections_EndWithTheirCertificates(t *testing.T) {
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(echoStream)})
	w.book.set("w1", pki.Worker, 0)
	c := open(t, dialer(t, w.Identity(t, "w1", pki.Worker, 3, time.Hour-2*time.Second, time.Hour)), w.peer)
	lives(t, "stream before the certificate's end", c)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("stream after the certificate's end: %v", err)
	}

	// The same with the server's certificate.
	short := newWorldOf(t, w.Swarm, w.Identity(t, "m1", pki.Manager, 1, time.Hour-2*time.Second, time.Hour))
	short.book.set("w1", pki.Worker, 0)
	d := dialer(t, w.Worker(t, "w1", 3))
	c = open(t, d, short.peer)
	lives(t, "stream before the server's certificate's end", c)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("stream after the server's certificate's end: %v", err)
	}
}

// A node whose certificate has expired has an anonymous way back in.
func TestCallAnonymous_NeedsNoCertificate(t *testing.T) {
	w := newWorld(t, control.Route{For: []control.Class{control.Anonymous}, Pattern: "POST /reenrol", Handler: control.Handle(echo)})
	w.book.set("w1", pki.Worker, 0)
	expired := w.Identity(t, "w1", pki.Worker, 3, 2*time.Hour, time.Hour)
	got, err := control.CallAnonymous[ask, reply](within(t, 5*time.Second), dialer(t, expired), w.peer, "/reenrol", &ask{"hi"})
	if err != nil || got.Text != ":hi" {
		t.Errorf("got %v, %v", got, err)
	}
	elsewhere := w.peer
	elsewhere.NodeID = "m2"
	if _, err := control.CallAnonymous[ask, reply](within(t, 5*time.Second), dialer(t, expired), elsewhere, "/reenrol", &ask{"hi"}); err == nil {
		t.Error("another manager was told")
	}
	none := dialer(t, &control.Identity{})
	if _, err := control.Call[ask, reply](within(t, 5*time.Second), none, w.peer, "/reenrol", &ask{}); err == nil || !strings.Contains(err.Error(), "this node has no certificate") {
		t.Errorf("call without a certificate: got %v", err)
	}
}

func newWorldOf(t *testing.T, s *controltest.Swarm, id *control.Identity) *world {
	t.Helper()
	w := &world{Swarm: s, book: newBook(), self: id}
	w.port, w.peer, w.stop = w.open(t, func() *control.Identity { return id }, nil,
		control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(echoStream)})
	return w
}

func TestPort_TakesAnotherIdentityWithoutDroppingStreams(t *testing.T) {
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(echoStream)})
	w.book.set("w1", pki.Worker, 0)
	mine := w.Worker(t, "w1", 3)
	d := control.NewDialer(control.DialerConfig{Identity: func() *control.Identity { return mine }, Logger: logger(t)})
	t.Cleanup(d.Close)
	old := open(t, d, w.peer)
	lives(t, "stream", old)

	// The worker renews: a new connection, and the old one goes on.
	mine = w.Worker(t, "w1", 4)
	fresh := open(t, d, w.peer)
	if fresh.LocalAddr().String() == old.LocalAddr().String() {
		t.Error("the old connection is used with the new certificate")
	}
	lives(t, "stream of the old certificate", old)
	lives(t, "stream of the new certificate", fresh)
	_ = old.Close()

	// The manager trusts another root too, and then only that.
	next := controltest.NewSwarm(t, w.Cluster)
	next.Epoch = w.Epoch
	both := *w.self
	both.Roots = append(both.Roots[:1:1], next.Root.Cert)
	w.setSelf(&both)
	w.port.Review()
	lives(t, "stream under two roots", fresh)
	one := both
	one.Roots = both.Roots[1:]
	w.setSelf(&one)
	w.port.Review()
	dies(t, "stream of a root that is not trusted any more", fresh)
}
