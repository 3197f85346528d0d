// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"skep/net/balance"
	"skep/net/nft"
)

// many are 1000 services of ten backends each, every one at a VIP of its own.
func many() []balance.Service {
	vip, backend := netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.9.0.1")
	var out []balance.Service
	for range 1000 {
		s := balance.Service{Address: vip, Protocol: "tcp", Port: 80}
		for range 10 {
			s.Backends = append(s.Backends, balance.Backend{Address: backend})
			backend = backend.Next()
		}
		out, vip = append(out, s), vip.Next()
	}
	return out
}

func takesMany(t *testing.T, w *world, _ place) { //nolint:thelper // the body of the test
	all := many()
	before := w.generation(t)
	start := time.Now()
	w.set(t, all...)
	t.Logf("1000 services of 10 backends were set in %v", time.Since(start).Round(time.Millisecond))
	if n := w.generation(t) - before; w.Mode() == balance.NFT && n != 1 {
		t.Errorf("%d transactions, want one", n)
	}
	if n, err := w.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("check: %d, %v", n, err)
	}
	all[500].Backends = all[500].Backends[1:]
	before = w.generation(t)
	w.set(t, all...)
	w.set(t, all...) // what is so already costs nothing
	if n := w.generation(t) - before; w.Mode() == balance.NFT && n != 1 {
		t.Errorf("%d transactions, want one", n)
	}
	if n, err := w.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("check: %d, %v", n, err)
	}
	w.set(t)
	if n, err := w.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("check: %d, %v", n, err)
	}
}

// generation is the number of the packet filter's transactions, where it has any.
func (w *world) generation(tb testing.TB) (n uint32) {
	tb.Helper()
	if w.Mode() == balance.IPVS {
		return 0
	}
	w.node.within(tb, withFilter(func(c *nft.Conn) (err error) {
		n, err = c.Generation()
		return err
	}))
	return n
}

func BenchmarkPlan(b *testing.B) {
	all := many()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := balance.Plan(output(), all); err != nil {
			b.Fatal(err)
		}
	}
}

// All services, as when a container is connected.
func BenchmarkSet(b *testing.B) {
	for _, mode := range modes(b) {
		b.Run(fmt.Sprintf("%s/services=1000", mode), func(b *testing.B) {
			w := newWorld(b, mode, balance.Output, 0)
			all := many()
			for b.Loop() {
				b.StopTimer()
				try(b, w.Destroy(b.Context()))
				b.StartTimer()
				w.set(b, all...)
			}
		})
	}
}

// One backend more or less among many, as when a container starts or ends.
func BenchmarkChange(b *testing.B) {
	for _, mode := range modes(b) {
		b.Run(fmt.Sprintf("%s/services=1000", mode), func(b *testing.B) {
			w := newWorld(b, mode, balance.Output, 0)
			with, without := many(), many()
			without[500].Backends = without[500].Backends[:9]
			w.set(b, with...)
			for b.Loop() {
				w.set(b, without...)
				with, without = without, with
			}
		})
	}
}

// BenchmarkConnect makes a connection, asks once, and closes it.
func BenchmarkConnect(b *testing.B) {
	for _, mode := range modes(b) {
		for _, p := range places() {
			b.Run(fmt.Sprintf("%s/%s", mode, p.name), func(b *testing.B) {
				w := newWorld(b, mode, p.where, 5)
				for _, h := range w.backends {
					h.serve(b, 80)
				}
				w.set(b, append(many(), w.to(at(p.v4, 80), "tcp", 0, 0, 1, 2, 3, 4))...)
				b.Run("direct", func(b *testing.B) { w.connect(b, at(w.backends[0].v4.String(), 80)) })
				b.Run("balanced", func(b *testing.B) { w.connect(b, at(p.v4, 80)) })
			})
		}
	}
}

func (w *world) connect(b *testing.B, to string) {
	b.Helper()
	n := 0
	for b.Loop() {
		c, err := dial(w.from, "tcp", to, 10*time.Second)
		try(b, err)
		if _, err = ask(c, 10*time.Second); err != nil {
			b.Fatal(err)
		}
		// A reset leaves no port behind that waits.
		try(b, c.(*net.TCPConn).SetLinger(0))
		try(b, c.Close())
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "conn/s")
}
