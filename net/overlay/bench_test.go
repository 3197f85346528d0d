// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"skep/net/link/linktest"
	"skep/net/overlay"
)

// BenchmarkAttach is the set-up of a container's network, beside the making of
// an empty namespace.
func BenchmarkAttach(b *testing.B) {
	for _, others := range []int{0, 100} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			n := newNode(b, linktest.NewSwitch(b))
			n.set(b, web(n))
			for i := range others {
				n.attach(b, fmt.Sprint("other", i), webID, fmt.Sprintf("10.0.9.%d/24", i+50))
			}
			ns := newNamespace(b)
			for b.Loop() {
				n.attachIn(b, ns, "eth0", "c", webID, "10.0.9.5/24", "fd00:9::5/64")
				b.StopTimer()
				if err := n.Detach(b.Context(), "c"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkDetach(b *testing.B) {
	n := newNode(b, linktest.NewSwitch(b))
	n.set(b, web(n))
	ns := newNamespace(b)
	for b.Loop() {
		b.StopTimer()
		n.attachIn(b, ns, "eth0", "c", webID, "10.0.9.5/24", "fd00:9::5/64")
		b.StartTimer()
		if err := n.Detach(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}

// manyPeers are spread over a thousand nodes.
func manyPeers(count int) []overlay.Peer {
	out := make([]overlay.Peer, count)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		node := netip.AddrFrom4([4]byte{198, 19, byte(i % 1000 >> 8), byte(i % 1000)})
		out[i] = overlay.Peer{Addresses: []netip.Addr{a}, MAC: overlay.MAC([]netip.Addr{a}), VTEP: node}
	}
	return out
}

// BenchmarkSet programs all peers of a network that is not there yet.
func BenchmarkSet(b *testing.B) {
	for _, count := range []int{1000, 10_000, 50_000} {
		b.Run(fmt.Sprintf("peers=%d", count), func(b *testing.B) {
			n := newNode(b, linktest.NewSwitch(b))
			peers := manyPeers(count)
			for b.Loop() {
				n.set(b, web(n, peers...))
				b.StopTimer()
				n.set(b)
				b.StartTimer()
			}
			b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "peers/s")
		})
	}
}

// BenchmarkSetOne programs one peer, which has moved, among many.
func BenchmarkSetOne(b *testing.B) {
	for _, count := range []int{100, 50_000} {
		b.Run(fmt.Sprintf("peers=%d", count), func(b *testing.B) {
			n := newNode(b, linktest.NewSwitch(b))
			all := manyPeers(count)
			other := append([]overlay.Peer{}, all...)
			other[count/2].VTEP = netip.MustParseAddr("198.19.100.1")
			n.set(b, web(n, all...))
			for b.Loop() {
				n.set(b, web(n, other...))
				all, other = other, all
			}
		})
	}
}

// BenchmarkCheck looks for differences where there are none.
func BenchmarkCheck(b *testing.B) {
	n := newNode(b, linktest.NewSwitch(b))
	n.set(b, web(n, manyPeers(50_000)...))
	for b.Loop() {
		if count, err := n.Check(b.Context()); count != 0 || err != nil {
			b.Fatal(count, err)
		}
	}
}

// BenchmarkThroughput is one TCP stream between containers of two nodes, and
// beside it the same over the cable between these: the ratio is what counts.
func BenchmarkThroughput(b *testing.B) {
	far := linktest.NewHost(b)
	c1, c2 := between(b,
		newNodeOn(b, &linktest.Machine{Path: far.Path, Address: far.Address}),
		newNodeOn(b, &linktest.Machine{Path: "/proc/thread-self/ns/net", Address: far.Gateway}))
	var over, direct float64
	const turns = 4 // by turns, so that both get their part of what else goes on
	for b.Loop() {
		for range turns {
			direct += stream(b, far, here{}, far.Gateway)
			over += stream(b, c1, c2, c2.addrs()[0])
		}
	}
	runs := float64(turns * b.N)
	b.ReportMetric(over/runs/1e9, "Gb/s")
	b.ReportMetric(direct/runs/1e9, "veth-Gb/s")
	b.ReportMetric(over/direct, "of-veth")
}

// here is the test's own namespace.
type here struct{}

func (here) Within(tb testing.TB, f func() error) {
	tb.Helper()
	if err := f(); err != nil {
		tb.Fatal(err)
	}
}

// stream sends for a while and returns how many bits arrived in a second.
func stream(b *testing.B, from, to place, addr netip.Addr) float64 {
	b.Helper()
	var l net.Listener
	to.Within(b, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, serverPort).String())
		return err
	})
	arrived := make(chan int64)
	go func() {
		c, err := l.Accept()
		if err != nil {
			arrived <- 0
			return
		}
		defer func() { _ = c.Close() }()
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
		arrived <- n
	}()
	defer func() { _ = l.Close() }()
	c, err := dial(b, from, "tcp", addr, patience)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := c.SetDeadline(start.Add(time.Second / 4)); err != nil {
		b.Fatal(err)
	}
	for buf := make([]byte, 1<<18); err == nil; {
		_, err = c.Write(buf)
	}
	_ = c.Close()
	n := <-arrived
	return float64(8*n) / time.Since(start).Seconds()
}
