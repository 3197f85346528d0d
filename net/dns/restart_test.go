// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"skep/net/dns"
	"skep/net/link"
)

func TestResolver_AnswersAfterARestartAtTheSamePort(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	before, port := table(t, ns, w.port(t)), w.port(t)
	w.stop()

	// While there is no process, a question is neither answered nor refused.
	var waiting net.Conn
	within(t, ns, func() (err error) {
		waiting, err = net.Dial("udp4", server)
		return err
	})
	defer waiting.Close()
	packet := question(t, "web", wire.TypeA)
	b := make([]byte, 512)
	for range 2 {
		if _, err := waiting.Write(packet); err != nil {
			t.Fatal(err)
		}
		_ = waiting.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := waiting.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want no answer", err)
		}
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	stream := make(chan dialled, 1)
	go func() {
		_ = link.Within(ns, func() error {
			conn, err := net.DialTimeout("tcp4", server, 20*time.Second)
			stream <- dialled{conn, err}
			return nil
		})
	}()
	waitForSYN(t, ns)

	w.start(t)
	w.Set(state(shop()))
	w.open(t, client(ns, "n1"))
	if got := w.port(t); got != port {
		t.Errorf("got port %s, want %s", got, port)
	}
	if diff := cmp.Diff(before, table(t, ns, port)); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	_ = waiting.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := waiting.Write(packet); err != nil {
		t.Fatal(err)
	}
	n, err := waiting.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := text(unpack(t, b[:n])); got != "NOERROR 60:10.0.1.2" {
		t.Errorf("got %s", got)
	}
	d := <-stream
	if d.err != nil {
		t.Fatalf("the connection that was asked for meanwhile: %v", d.err)
	}
	conn := &wire.Conn{Conn: d.conn}
	defer conn.Close()
	if err := conn.WriteMsg(new(wire.Msg).SetQuestion("web.", wire.TypeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := conn.ReadMsg(); err != nil || text(m) != "NOERROR 60:10.0.1.2" {
		t.Errorf("got %v %v", m, err)
	}
}

// waitForSYN waits until a connection is being asked for in the namespace.
func waitForSYN(tb testing.TB, path string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	const synSent = " 02 "
	for {
		var b []byte
		within(tb, path, func() (err error) {
			b, err = os.ReadFile("/proc/thread-self/net/tcp")
			return err
		})
		if bytes.Contains(b, []byte(synSent)) {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("no connection is asked for: %s", b)
		case <-tick.C:
		}
	}
}

func TestResolver_TakesAnotherPortIfItsOwnIsTaken(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	port := w.port(t)
	w.stop()
	within(t, ns, func() error {
		l, err := net.Listen("tcp4", dns.Address+":"+port)
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	w.start(t)
	w.Set(state(shop()))
	w.open(t, client(ns, "n1"))
	if got := w.port(t); got == port {
		t.Errorf("still has port %s", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := text(ask(t, ns, network, "web")); got != "NOERROR 60:10.0.1.2" {
			t.Errorf("got %s", got)
		}
	}
}
