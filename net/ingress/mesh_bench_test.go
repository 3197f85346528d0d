// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/network"

	"skep/net/ingress"
	"skep/net/link"
)

// ways is a client's ways to a server: without the mesh, and by it to a task of
// the node that is asked and to one of another, with and without its address kept.
func ways(b *testing.B) (client place, to map[string]netip.AddrPort, order []string) {
	b.Helper()
	w := newWorld(b, 2)
	near, far := w.run(w.nodes[0], "near"), w.run(w.nodes[1], "far")
	for _, t := range []*task{near, far} {
		t.sink(b, 90)
	}
	direct := &task{name: "direct", path: w.nodes[0].Path}
	direct.serve(b, 80)
	direct.sink(b, 90)
	to = map[string]netip.AddrPort{"direct": at(w.nodes[0].Address, 0)}
	order = []string{"direct"}
	port := uint16(8000)
	for _, t := range []*task{near, far} {
		t.join(b, append(both(0, 80), both(1, 90)...)...)
		for _, source := range []string{ingress.SNAT, ingress.Preserve} {
			w.publish(port, source, 0, 80, t)
			w.publish(port+1, source, 1, 90, t)
			name := t.name + "/" + source
			to[name], order = at(w.nodes[0].Address, port), append(order, name)
			port += 2
		}
	}
	w.set()
	return w.lan.Machine(b), to, order
}

// sink takes what it gets and says how much that was in the end.
func (t *task) sink(tb testing.TB, port uint16) {
	tb.Helper()
	var l net.Listener
	t.Within(tb, func() (err error) {
		l, err = net.Listen("tcp4", at(netip.IPv4Unspecified(), port).String())
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	tb.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// Requests of 16 clients, each by a connection of its own or all by one.
func BenchmarkMesh_Requests(b *testing.B) {
	client, to, order := ways(b)
	for _, kept := range []bool{false, true} {
		for _, name := range order {
			what := map[bool]string{false: "new/", true: "kept/"}[kept]
			addr := to[name]
			if addr.Port() == 0 {
				addr = at(addr.Addr(), 80)
			}
			b.Run(what+name, func(b *testing.B) {
				var wg sync.WaitGroup
				for i := range 16 {
					wg.Go(func() { requests(b, client, addr, kept, (b.N+i)/16) })
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			})
		}
	}
}

func requests(b *testing.B, client place, to netip.AddrPort, kept bool, n int) {
	b.Helper()
	client.Within(b, func() error {
		var c net.Conn
		var err error
		for range n {
			if c == nil || !kept {
				d := net.Dialer{Timeout: patience}
				if c, err = d.DialContext(b.Context(), "tcp4", to.String()); err != nil {
					return err
				}
				// No connection is left waiting for its end: ports would run out.
				if err = c.(*net.TCPConn).SetLinger(0); err != nil {
					return err
				}
			}
			if _, _, err = ask(c); err != nil {
				return err
			}
			if !kept {
				_ = c.Close()
			}
		}
		if c != nil {
			_ = c.Close()
		}
		return nil
	})
}

// One connection that carries as much as it can.
func BenchmarkMesh_Throughput(b *testing.B) {
	const block = 64 << 20
	client, to, order := ways(b)
	chunk := make([]byte, 1<<18)
	for _, name := range order {
		addr := to[name]
		addr = at(addr.Addr(), addr.Port()+1)
		if addr.Port() == 1 {
			addr = at(addr.Addr(), 90)
		}
		b.Run(name, func(b *testing.B) {
			c := mustDial(b, client, "tcp", addr)
			b.SetBytes(block)
			for b.Loop() {
				for range block / len(chunk) {
					if _, err := c.Write(chunk); err != nil {
						b.Fatal(err)
					}
				}
			}
			_ = c.Close()
		})
	}
}

// One backend more or less among many, and the join of a container.
func BenchmarkMesh_Set(b *testing.B) {
	w := newWorld(b, 1)
	n := w.nodes[0]
	s := w.state(n)
	for k := 1; k < 1024; k++ {
		s.Routers = append(s.Routers, k)
	}
	for i := range 200 {
		p := ingress.Published{Protocol: network.TCP, Port: uint16(8000 + i), Service: "s"}
		for j := range 10 {
			p.Backends = append(p.Backends, ingress.MeshBackend{Address: netip.AddrFrom4([4]byte{10, 0, byte(1 + j), byte(i)}), Target: 80})
		}
		s.Published = append(s.Published, p)
	}
	err := link.Within(n.Path, func() error {
		for i := 0; b.Loop(); i++ {
			s.Published[0].Backends[0].Draining = i%2 == 0
			if err := n.Set(b.Context(), s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

func BenchmarkMesh_Join(b *testing.B) {
	w := newWorld(b, 1)
	t := w.member(w.nodes[0], "a")
	err := link.Within(w.nodes[0].Path, func() error {
		for i := 0; b.Loop(); i++ {
			if err := w.nodes[0].Join(b.Context(), t.wants(both(i%2, 80)...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
