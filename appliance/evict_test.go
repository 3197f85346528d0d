package appliance_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"skep/appliance/nodetest"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/pki/identity"
	"skep/store/replica"
)

// TestEvict_OpenConnectionsEndWithinASecond (SEC-EVICT) takes the keys of a
// node, holds connections open with them, and has the node removed or demoted.
func TestEvict_OpenConnectionsEndWithinASecond(t *testing.T) {
	s := nodetest.NewSwarm(t, nodetest.Binary(t), dockerCLI(t))
	s.Form(t, "m1", "m2", "m3", "w1")
	docker := s.Node(t, "m1").CLI(t, s.Docker)
	for _, step := range []struct {
		name, node string
		evict      []string
	}{
		{"removed worker", "w1", []string{"node", "rm", "--force", "w1"}},
		{"demoted manager", "m3", []string{"node", "demote", "m3"}},
	} {
		n := s.Node(t, step.node)
		thief := stolen(t, n)
		var held []*tls.Conn
		for _, to := range []string{"m1", "m2"} {
			c, err := thief.dial(s.Node(t, to))
			if err != nil {
				t.Fatalf("%s: before: %v", step.name, err)
			}
			held = append(held, c)
		}
		if !thief.served(t, s) {
			t.Fatalf("%s: it was not served before", step.name)
		}
		time.Sleep(500 * time.Millisecond)
		for _, c := range held {
			if !alive(c, 10*time.Millisecond) {
				t.Fatalf("%s: a connection did not last", step.name)
			}
		}
		docker.Run(step.evict...)
		began := time.Now()
		for i, c := range held {
			if alive(c, time.Until(began.Add(time.Second))) {
				t.Errorf("%s: a second later the connection to manager %d still lives", step.name, i+1)
			}
			c.Close()
		}
		if thief.served(t, s) {
			t.Errorf("%s: it is served", step.name)
		}
	}
}

// served says whether one of the managers does for the thief what it does for
// nodes of its role: lets a worker begin a session, tells a manager how far the
// swarm's state is. A demoted manager is a worker at most.
func (s *thief) served(t *testing.T, swarm *nodetest.Swarm) bool {
	t.Helper()
	d := control.NewDialer(control.DialerConfig{
		Identity: func() *control.Identity { return s.id },
		Dial: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = s.n.Do(func() (err error) {
				c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	defer d.Close()
	for _, to := range []string{"m1", "m2"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		peer := wire.Peer{Addr: swarm.Node(t, to).Addr.String() + ":2377"}
		var err error
		if s.id.Role() == pki.Manager {
			_, err = control.Call[struct{}, replica.Answer](ctx, d, peer, "/readindex", &struct{}{})
		} else {
			var c net.Conn
			if c, err = d.Stream(ctx, peer, "/session"); err == nil {
				c.Close()
			}
		}
		cancel()
		if err == nil {
			return true
		}
		t.Logf("%s at %s: %v", s.id.Role(), to, err)
	}
	return false
}

// thief has a node's keys and is on its machine.
type thief struct {
	n  *nodetest.Node
	id *control.Identity
}

// stolen stops the node, if it runs, and takes its keys.
func stolen(t *testing.T, n *nodetest.Node) *thief {
	t.Helper()
	if n.Running() {
		n.Stop(t)
	}
	keys, err := identity.Open(n.Path("data"))
	if err != nil {
		t.Fatal(err)
	}
	st := keys.State()
	cert, roots, err := st.TLS()
	if err := errors.Join(err, keys.Close()); err != nil {
		t.Fatal(err)
	}
	return &thief{n, &control.Identity{Certificate: cert, Roots: roots, Cluster: st.ClusterID, NodeID: st.NodeID, Epoch: st.Epoch}}
}

func (s *thief) dial(to *nodetest.Node) (c *tls.Conn, err error) {
	err = s.n.Do(func() error {
		d := &net.Dialer{Timeout: 5 * time.Second}
		c, err = tls.DialWithDialer(d, "tcp", net.JoinHostPort(to.Addr.String(), "2377"), &tls.Config{
			Certificates: []tls.Certificate{s.id.Certificate}, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	// The client's half of the beginning of HTTP/2.
	_, err = c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	return c, err
}

// alive reads for a while: it is false if the connection ended.
func alive(c *tls.Conn, d time.Duration) bool {
	buf := make([]byte, 4096)
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return false
	}
	for {
		if _, err := c.Read(buf); err != nil {
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}
