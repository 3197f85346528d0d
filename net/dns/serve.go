// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds on what one container may cost.
const (
	maxUDP         = 4096 // of what is answered from here, over UDP
	maxConnections = 64   // at a time; more are closed at once
	maxAskingEach  = 256  // questions that others are being asked; more fail at once
)

const (
	idleTimeout  = 10 * time.Second // of a connection, and for each message on it
	writeTimeout = 5 * time.Second
	// acceptPause is waited where a socket has an error that may pass, such as
	// that the process has too many open files.
	acceptPause = 100 * time.Millisecond
)

// sockets are a name server's, in its container's namespace.
type sockets struct {
	server     *server
	udp        *net.UDPConn
	tcp        *net.TCPListener
	port       uint16
	namespace  namespace
	generation uint32 // of the ruleset, when its table was last known to be right

	connections chan struct{} // one for each connection
	asking      chan struct{} // one for each question that others are being asked
}

func (s *sockets) close() {
	if s.udp != nil {
		_ = s.udp.Close()
	}
	if s.tcp != nil {
		_ = s.tcp.Close()
	}
}

// serve answers until ctx ends or the sockets are closed.
func (s *sockets) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, s.close)()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.serveTCP(ctx, &running) })
	s.serveUDP(ctx, &running)
	cancel()
}

func (s *sockets) serveUDP(ctx context.Context, running *sync.WaitGroup) {
	in, out := make([]byte, maxUDP), make([]byte, 0, maxUDP)
	var q query
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx)
			continue
		}
		reply, forward := s.local(&q, in[:n], out, true)
		if forward {
			s.forwardUDP(ctx, running, &q, from)
			continue
		}
		if reply != nil {
			_, _ = s.udp.WriteToUDPAddrPort(reply, from)
		}
	}
}

// local answers a packet from what is known here: with nothing, if it deserves
// none or if others are to be asked.
func (s *sockets) local(q *query, packet, out []byte, datagram bool) (reply []byte, forward bool) {
	rcode, dropped := q.parse(packet)
	switch {
	case dropped:
		return nil, false
	case rcode != dns.RcodeSuccess:
		return q.fail(out, rcode), false
	}
	limit := maxMessage
	if datagram {
		limit = min(q.size, maxUDP)
	}
	reply = s.server.current().answer(q, out, limit)
	return reply, reply == nil
}

// forwardUDP has others asked, and answers when they have.
func (s *sockets) forwardUDP(ctx context.Context, running *sync.WaitGroup, q *query, from netip.AddrPort) {
	select {
	case s.asking <- struct{}{}:
	default:
		_, _ = s.udp.WriteToUDPAddrPort(q.fail(nil, dns.RcodeServerFailure), from)
		return
	}
	packet := append([]byte(nil), q.packet...) // the next one is read where this is
	running.Go(func() {
		defer func() { <-s.asking }()
		_, _ = s.udp.WriteToUDPAddrPort(s.elsewhere(ctx, packet, true), from)
	})
}

// elsewhere is the answer of others, or that there was none.
func (s *sockets) elsewhere(ctx context.Context, packet []byte, datagram bool) []byte {
	var q query
	q.parse(packet) // as before
	r, c := s.server.resolver, s.server.client.Load()
	var from string
	var servers []netip.AddrPort
	switch {
	case c.Internal:
	case len(c.Upstreams) > 0:
		from, servers = c.Namespace, c.Upstreams
	default:
		servers = r.cfg.Upstreams()
	}
	reply, err := r.forward.ask(ctx, from, servers, packet, !datagram)
	if err != nil {
		r.cfg.Logger.DebugContext(ctx, "name servers did not answer", "container", s.server.id, "err", err)
		return q.fail(nil, dns.RcodeServerFailure)
	}
	if datagram && len(reply) > q.size {
		return q.shorten(reply)
	}
	return reply
}

func (s *sockets) serveTCP(ctx context.Context, running *sync.WaitGroup) {
	for {
		conn, err := s.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx)
			continue
		}
		select {
		case s.connections <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-s.connections }()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			s.serveConn(ctx, conn)
			_ = conn.Close()
		})
	}
}

// serveConn answers one question after another, until the client has no more.
func (s *sockets) serveConn(ctx context.Context, conn net.Conn) {
	var q query
	var in, out []byte
	for {
		if conn.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		var err error
		if in, err = readMessage(conn, in); err != nil {
			return
		}
		reply, forward := s.local(&q, in, out, false)
		if forward {
			reply = s.elsewhereTCP(ctx, &q)
		} else {
			out = reply[:0]
		}
		if reply == nil || conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return
		}
		if err := writeMessage(conn, reply); err != nil {
			return
		}
	}
}

func (s *sockets) elsewhereTCP(ctx context.Context, q *query) []byte {
	select {
	case s.asking <- struct{}{}:
	default:
		return q.fail(nil, dns.RcodeServerFailure)
	}
	defer func() { <-s.asking }()
	return s.elsewhere(ctx, q.packet, false)
}

// readMessage reads a message with its length before it, into b if it has room.
func readMessage(r io.Reader, b []byte) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if cap(b) < n {
		b = make([]byte, n)
	}
	_, err := io.ReadFull(r, b[:n])
	return b[:n], err
}

// writeMessage writes a message with its length before it, in one piece.
func writeMessage(w io.Writer, message []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(message)), uint16(len(message)))
	_, err := w.Write(append(b, message...))
	return err
}

// pause waits a moment.
func pause(ctx context.Context) {
	t := time.NewTimer(acceptPause)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
