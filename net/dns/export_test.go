// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net"
	"net/netip"
)

// What tests see of the inside.
var (
	Plan            = plan
	Reverse         = reverse
	ParseServers    = parseServers
	Answers         = answers
	MaxAsking       = maxAsking
	MaxAskingEach   = maxAskingEach
	Patience        = patience
	AskTimeout      = askTimeout
	SlowFor         = slowFor
	MaxConnections  = maxConnections
	ErrBusy         = errBusy
	ErrSilent       = errSilent
	ErrNoUpstream   = errNoUpstream
	RefusesToAnswer = refuses
)

// Local answers packets as a client's sockets do, without sockets.
type Local struct {
	sockets sockets
	q       query
	out     []byte
}

// NewLocal is what c sees of s.
func NewLocal(s State, c Client) *Local {
	r := New(Config{})
	r.Set(s)
	l := &Local{out: make([]byte, 0, maxMessage)}
	l.sockets.server = &server{resolver: r}
	l.sockets.server.client.Store(c.clone())
	return l
}

// Answer is what the packet is answered; forward: others are to be asked.
func (l *Local) Answer(packet []byte, datagram bool) (reply []byte, forward bool) {
	return l.sockets.local(&l.q, packet, l.out, datagram)
}

// Shorten cuts a reply to what the asking packet allows.
func Shorten(asked, reply []byte) []byte {
	var q query
	q.parse(asked)
	return q.shorten(reply)
}

// Forwarder asks by connections that dial makes.
type Forwarder struct{ f *forwarder }

// NewForwarder makes one.
func NewForwarder(dial func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)) *Forwarder {
	f := newForwarder()
	f.dial = func(ctx context.Context, network string, u upstream) (net.Conn, error) {
		return dial(ctx, network, u.server)
	}
	return &Forwarder{f}
}

// Ask asks.
func (f *Forwarder) Ask(ctx context.Context, servers []netip.AddrPort, packet []byte, stream bool) ([]byte, error) {
	return f.f.ask(ctx, "", servers, packet, stream)
}

// HostUpstreams reads a resolv.conf whenever it is called.
func HostUpstreams(path string) func() []netip.AddrPort { return (&hostConfig{path: path}).upstreams }
