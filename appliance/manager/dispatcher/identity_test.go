package dispatcher_test

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki"
)

// from is a connection from an address.
type from struct {
	net.Conn
	ip string
}

func (f from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.ip), Port: 1} }

// open begins a session of n1 in a process, from an address. The answer to the
// hello is a welcome or a refusal; done is what serving it came to.
func (w *world) open(ip string, hello wire.Hello) (c *wire.Conn, answer *wire.Message, done chan error) {
	w.Helper()
	here, there := net.Pipe()
	done = make(chan error, 1)
	go func() { done <- w.d.Serve(w.Context(), from{there, ip}, pki.Node{ID: "n1"}) }() // ends with here
	w.Cleanup(func() { _ = here.Close() })
	c = wire.NewConn(here)
	hello.Protocol = wire.Protocol
	if err := c.Send(&wire.Message{Hello: &hello}, time.Minute); err != nil {
		w.Fatal(err)
	}
	answer, err := c.Receive(time.Minute)
	if err != nil {
		w.Fatal(err)
	}
	return c, answer, done
}

// drain reads whatever the manager sends, until it ends the session.
func drain(c *wire.Conn) {
	for {
		if _, err := c.Receive(time.Hour); err != nil {
			return
		}
	}
}

func TestServe_RefusesASecondMachineWithTheSameIdentity(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		c, m, _ := w.open("10.0.0.1", wire.Hello{Instance: "a"})
		if m.Welcome == nil {
			t.Fatalf("the first: got %+v", m)
		}
		go drain(c)
		for range 5 { // more often than a node may register
			_, m, done := w.open("10.0.0.2", wire.Hello{Instance: "b"})
			if m.Refusal == nil || m.Refusal.Kind != wire.Denied || !strings.Contains(m.Refusal.Text, "connected from elsewhere (10.0.0.1)") {
				t.Fatalf("another machine: got %+v", m)
			}
			if err := <-done; err == nil {
				t.Error("the refusal is no error of the session")
			}
		}
		if n := w.node("n1"); n.Status.Addr != "10.0.0.1" {
			t.Errorf("the node is at %s", n.Status.Addr)
		}
		// A node that starts again, and one that comes by another way.
		for _, h := range []struct{ ip, instance string }{{"10.0.0.1", "c"}, {"10.0.0.3", "c"}} {
			c, m, _ := w.open(h.ip, wire.Hello{Instance: h.instance})
			if m.Welcome == nil {
				t.Fatalf("%v: got %+v", h, m)
			}
			go drain(c)
		}
		// One that is silent is not waited for until it is down.
		time.Sleep(9 * time.Second)
		c, m, _ = w.open("10.0.0.4", wire.Hello{Instance: "d"})
		if m.Welcome == nil {
			t.Fatalf("after a silence: got %+v", m)
		}
		go drain(c)
	})
}

func TestServe_NodeThatLeavesIsDownAtOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		c, _, done := w.open("10.0.0.1", wire.Hello{Instance: "a"})
		go drain(c)
		synctest.Wait()
		if n := w.node("n1"); n.Status.State != swarm.NodeStateReady {
			t.Fatalf("the node is %s", n.Status.State)
		}
		if err := c.Send(&wire.Message{Bye: &wire.Bye{}}, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("the session ends with %v", err)
		}
		synctest.Wait()
		if n := w.node("n1"); n.Status.State != swarm.NodeStateDown || n.Status.Message != "the node left the swarm" {
			t.Errorf("the node is %s: %s", n.Status.State, n.Status.Message)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := w.node("n1"); n.Status.Message != "the node left the swarm" {
			t.Errorf("later it is %s: %s", n.Status.State, n.Status.Message)
		}
	})
}

func TestServe_NotesTheDataPath(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		c, _, _ := w.open("10.0.0.1", wire.Hello{Instance: "a", DataPath: "10.9.0.1"})
		go drain(c)
		for _, tt := range []struct{ told, want string }{
			{"", "10.9.0.1"}, {"fd00::1", "fd00::1"}, {"nonsense", "fd00::1"}, {"0.0.0.0", "fd00::1"}, {"224.0.0.1", "fd00::1"}, {"10.9.0.2", "10.9.0.2"},
		} {
			synctest.Wait()
			if tt.told != "" {
				if err := c.Send(&wire.Message{Describe: &wire.Describe{DataPath: tt.told}}, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			if n := w.node("n1"); n.DataPath != tt.want {
				t.Errorf("told %q: got %s, want %s", tt.told, n.DataPath, tt.want)
			}
		}
	})
}
