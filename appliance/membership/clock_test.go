package membership_test

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire/control/controltest"
	"skep/pki"
	"skep/pki/join"
)

// TestJoin_SaysThatAClockIsWrong asks a manager whose certificate begins in the
// joiner's future: to try again would not help.
func TestJoin_SaysThatAClockIsWrong(t *testing.T) {
	w := &world{T: t}
	w1 := w.add("w1")
	s := controltest.NewSwarm(t, "swarm")
	id := s.Identity(t, "m1", pki.Manager, 1, -5*time.Hour, 24*time.Hour)
	cert := id.Certificate
	cert.Certificate = append(cert.Certificate, s.Root.Cert.Raw)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // until l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) { // ends with the connection
				defer c.Close()
				_, _ = c.Read(make([]byte, 1))
			}(c)
		}
	}()
	began := time.Now()
	err = w1.Join(t.Context(), swarm.JoinRequest{JoinToken: join.New(s.Root.Cert.Raw).Text(), RemoteAddrs: []string{l.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "off or more, set it and try again") || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
	if st := w1.Info(t.Context()).LocalNodeState; st != swarm.LocalNodeStateInactive {
		t.Errorf("the node is %s", st)
	}
}
