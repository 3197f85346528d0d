// SPDX-License-Identifier: Apache-2.0

// Package echo asks the kernels of others whether packets reach them (ICMP
// echo). No program has to cooperate; who filters such packets is silent.
package echo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"skep/net/link"
)

// again is how long an answer may take before it is asked for again.
const again = 500 * time.Millisecond

// Ask sends echo requests from the namespace pinned at path until everybody has
// answered or ctx ends, and returns how long each took who did. Those are sent
// from the source of their family; without one, nobody of it is asked.
func Ask(ctx context.Context, path string, sources, targets []netip.Addr) (map[netip.Addr]time.Duration, error) {
	took := map[netip.Addr]time.Duration{}
	var mu sync.Mutex
	var g errgroup.Group
	for _, source := range sources {
		var of []netip.Addr
		for _, t := range targets {
			if t.Is4() == source.Is4() {
				of = append(of, t)
			}
		}
		if len(of) == 0 {
			continue
		}
		g.Go(func() error {
			found, err := askFamily(ctx, path, source, of)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(took, found)
			return err
		})
	}
	err := g.Wait()
	return took, err
}

func askFamily(ctx context.Context, path string, source netip.Addr, targets []netip.Addr) (map[netip.Addr]time.Duration, error) {
	conn, err := listen(ctx, path, source)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	// Reading ends with ctx.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	r := newRound(source.Is4(), targets)
	for len(r.sent) > 0 && ctx.Err() == nil {
		r.send(conn)
		if err := conn.SetReadDeadline(time.Now().Add(again)); err != nil {
			return nil, fmt.Errorf("wait for echoes: %w", err)
		}
		if ctx.Err() != nil {
			break // it ended before the deadline that would have woken us
		}
		if err := r.read(conn); err != nil {
			return nil, err
		}
	}
	return r.took, nil
}

func listen(ctx context.Context, path string, source netip.Addr) (conn net.PacketConn, err error) {
	network := "ip4:icmp"
	if source.Is6() {
		network = "ip6:ipv6-icmp"
	}
	err = link.Within(path, func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(ctx, network, source.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask for echoes: %w", err)
	}
	return conn, nil
}

// The types of messages, and the length of their header.
const (
	request4, reply4 = 8, 0
	request6, reply6 = 128, 129
	header           = 8
)

// round is requests of one family that wait for answers.
type round struct {
	request, reply byte
	id             uint16
	// sent is when those who have not answered were asked first.
	sent map[netip.Addr]time.Time
	took map[netip.Addr]time.Duration
}

func newRound(v4 bool, targets []netip.Addr) *round {
	r := &round{request: request6, reply: reply6, id: uint16(rand.Uint32()), sent: map[netip.Addr]time.Time{}, took: map[netip.Addr]time.Duration{}}
	if v4 {
		r.request, r.reply = request4, reply4
	}
	for _, t := range targets {
		r.sent[t] = time.Time{}
	}
	return r
}

// send asks everybody who has not answered. Whoever cannot be sent to does not
// answer, and that is all there is to say.
func (r *round) send(conn net.PacketConn) {
	for t, first := range r.sent {
		if first.IsZero() {
			r.sent[t] = time.Now()
		}
		_, _ = conn.WriteTo(r.message(), &net.IPAddr{IP: t.AsSlice(), Zone: t.Zone()})
	}
}

// message is a request. The kernel fills in the checksum of IPv6's.
func (r *round) message() []byte {
	b := make([]byte, header+8)
	b[0] = r.request
	binary.BigEndian.PutUint16(b[4:], r.id)
	copy(b[header:], "skep")
	if r.request == request4 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is the Internet's (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// read takes answers until there are all, or it is time to ask again.
func (r *round) read(conn net.PacketConn) error {
	b := make([]byte, 1500)
	for len(r.sent) > 0 {
		n, from, err := conn.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read echoes: %w", err)
		}
		r.take(b[:n], from)
	}
	return nil
}

// take notes an answer, if it is one. All that comes to the namespace is seen.
func (r *round) take(b []byte, from net.Addr) {
	ip, ok := from.(*net.IPAddr)
	if !ok || len(b) < header || b[0] != r.reply || binary.BigEndian.Uint16(b[4:]) != r.id {
		return
	}
	a, _ := netip.AddrFromSlice(ip.IP)
	a = a.Unmap()
	if first, waits := r.sent[a]; waits {
		r.took[a] = time.Since(first)
		delete(r.sent, a)
	}
}
