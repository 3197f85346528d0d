// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/miekg/dns"

	"skep/net/link"
)

// dialer connects to a name server by udp or tcp.
type dialer func(ctx context.Context, network string, u upstream) (net.Conn, error)

// dialUpstream opens the socket in the namespace from which the server is asked.
func dialUpstream(ctx context.Context, network string, u upstream) (conn net.Conn, err error) {
	var d net.Dialer
	if u.namespace == "" {
		return d.DialContext(ctx, network, u.server.String())
	}
	err = link.Within(u.namespace, func() error {
		conn, err = d.DialContext(ctx, network, u.server.String())
		return err
	})
	return conn, err
}

// buffers are for datagrams, whose length is not known before they are read.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// exchange asks one server: by datagram, and if the answer was cut, by stream.
func (f *forwarder) exchange(ctx context.Context, u upstream, packet []byte, stream bool) ([]byte, error) {
	if !stream {
		reply, err := f.exchangeOver(ctx, "udp", u, packet)
		if err != nil || binary.BigEndian.Uint16(reply[2:])&flagTruncated == 0 {
			return reply, err
		}
		if whole, err := f.exchangeOver(ctx, "tcp", u, packet); err == nil {
			return whole, nil
		}
		return reply, nil // the client may try by itself
	}
	return f.exchangeOver(ctx, "tcp", u, packet)
}

func (f *forwarder) exchangeOver(ctx context.Context, network string, u upstream, packet []byte) ([]byte, error) {
	reply, err := f.converse(ctx, network, u, packet)
	if err != nil {
		return nil, fmt.Errorf("ask %s by %s: %w", u.server, network, err)
	}
	return reply, nil
}

// converse sends the packet with a number of our own and reads until there is
// an answer to it; the answer has the client's number.
func (f *forwarder) converse(ctx context.Context, network string, u upstream, packet []byte) ([]byte, error) {
	conn, err := f.dial(ctx, network, u)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	ours := bytes.Clone(packet)
	_, _ = rand.Read(ours[:2]) // never fails
	read, write := readDatagram, writeDatagram
	if network == "tcp" {
		read, write = readStream, writeStream
	}
	if err := write(conn, ours); err != nil {
		return nil, err
	}
	for {
		reply, err := read(conn)
		if err != nil {
			return nil, err
		}
		if answers(ours, reply) {
			copy(reply, packet[:2])
			return reply, nil
		}
		if network == "tcp" {
			return nil, errors.New("the answer is to another question")
		}
	}
}

// answers reports whether a packet is an answer to a question: it has its
// number and the same question, whose letters may differ in case. One that
// says that it did not understand may have no question.
func answers(asked, reply []byte) bool {
	if len(reply) < headerLen || !bytes.Equal(asked[:2], reply[:2]) || reply[2]&(flagResponse>>8) == 0 {
		return false
	}
	var q, r query
	if _, dropped := q.parse(asked); dropped {
		return false
	}
	r.packet = reply
	switch binary.BigEndian.Uint16(reply[4:]) {
	case 0:
		rcode := int(reply[3] & 0xf)
		return rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented || rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused
	case 1:
		_, ok := r.question(headerLen)
		return ok && bytes.Equal(q.name, r.name) && q.kind == r.kind && q.class == r.class
	}
	return false
}

func readDatagram(conn net.Conn) ([]byte, error) {
	b := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(b)
	n, err := conn.Read(b[:])
	return bytes.Clone(b[:n]), err
}

func writeDatagram(conn net.Conn, b []byte) error {
	_, err := conn.Write(b)
	return err
}

func readStream(conn net.Conn) ([]byte, error)  { return readMessage(conn, nil) }
func writeStream(conn net.Conn, b []byte) error { return writeMessage(conn, b) }

// shorten cuts an answer to what the client takes, and says so in it.
func (q *query) shorten(reply []byte) []byte {
	var m dns.Msg
	if m.Unpack(reply) == nil {
		m.Truncate(q.size)
		if b, err := m.Pack(); err == nil && len(b) <= q.size {
			return b
		}
	}
	out := q.fail(nil, dns.RcodeSuccess)
	out[2] |= flagTruncated >> 8
	return out
}
