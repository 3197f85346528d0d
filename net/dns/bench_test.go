// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

// BenchmarkAnswer answers without sockets.
func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{10, 250, 10000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			local := dns.NewLocal(state(crowd(n)), dns.Client{ID: "c1", Networks: []string{"n1"}})
			for _, name := range []string{"web", "tasks.web"} {
				packet := question(b, name, wire.TypeA)
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						local.Answer(packet, true)
					}
				})
			}
		})
	}
}

// BenchmarkSet sets a network of which one endpoint has changed, and asks once.
func BenchmarkSet(b *testing.B) {
	for _, n := range []int{250, 10000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			network := crowd(n)
			packet := question(b, "web", wire.TypeA)
			for b.Loop() {
				next := *network
				dns.NewLocal(state(&next), dns.Client{ID: "c1", Networks: []string{"n1"}}).Answer(packet, true)
			}
		})
	}
}

// BenchmarkServe asks from inside a container by datagram, and beside it a bare
// echo there. Each of the clients waits for an answer before it asks again.
func BenchmarkServe(b *testing.B) {
	w := newWorld(b)
	w.Set(state(crowd(250)))
	ns := container(b)
	w.open(b, client(ns, "n1"))
	echo := serveEcho(b, ns)
	for _, clients := range []int{1, 8} {
		for _, bb := range []struct{ name, server, asked string }{
			{"echo", echo, "web"}, {"vip", server, "web"}, {"tasks", server, "tasks.web"}, {"unknown", server, "nobody"},
		} {
			b.Run(fmt.Sprintf("%s/clients=%d", bb.name, clients), func(b *testing.B) {
				benchServe(b, ns, bb.server, question(b, bb.asked, wire.TypeA), clients)
			})
		}
	}
}

func benchServe(b *testing.B, ns, server string, packet []byte, clients int) {
	b.Helper()
	conns := make([]net.Conn, clients)
	within(b, ns, func() (err error) {
		for i := range conns {
			if conns[i], err = net.Dial("udp4", server); err != nil {
				return err
			}
		}
		return nil
	})
	took := make([][]time.Duration, clients)
	each := (b.N + clients - 1) / clients
	b.ResetTimer()
	var running sync.WaitGroup
	for i, conn := range conns {
		running.Go(func() {
			defer conn.Close()
			reply := make([]byte, 4096)
			for range each {
				start := time.Now()
				if _, err := conn.Write(packet); err != nil {
					b.Error(err)
					return
				}
				if _, err := conn.Read(reply); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	running.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "queries/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// serveEcho answers datagrams with themselves.
func serveEcho(b *testing.B, ns string) string {
	b.Helper()
	var conn *net.UDPConn
	within(b, ns, func() error {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(in)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(in[:n], from)
		}
	}()
	b.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().String()
}

// BenchmarkOpen opens the name server of a container, and shuts it: at first
// with no rules, then as a process does that comes after another.
func BenchmarkOpen(b *testing.B) {
	w := newWorld(b)
	b.Run("new", func(b *testing.B) {
		for i := range b.N {
			b.StopTimer()
			ns := container(b)
			b.StartTimer()
			w.open(b, dns.Client{ID: fmt.Sprint("c", i), Namespace: ns})
		}
	})
	b.Run("again", func(b *testing.B) {
		ns := container(b)
		for b.Loop() {
			w.open(b, client(ns))
			w.stop()
			w.start(b)
		}
	})
}
