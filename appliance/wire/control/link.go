package control

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"skep/pki"
)

// anonymousLife is how long a connection without a certificate may take for all
// that it wants.
const anonymousLife = 2 * time.Minute

// link is one TCP connection below its TLS. Closing it ends all that is above
// it at once, without a farewell that could block.
type link struct {
	net.Conn
	links *links
	// source is where it is counted.
	source netip.Prefix
	gone   atomic.Bool

	// What follows is set once, by admit, after the handshake.

	// node and chain are the peer's certificate; zero if it showed none.
	node  pki.Node
	chain []*x509.Certificate
	raft  bool
	end   *time.Timer

	// class is what the peer was judged to be.
	class atomic.Value
	// layer is the one that a Raft connection belongs to; guarded by the
	// links' mu.
	layer *layer
	// hello is the last one that was found good, as a header.
	hello atomic.Pointer[greeting]
}

// greeting is a hello that was good for an identity.
type greeting struct {
	text string
	id   *Identity
}

// Class is what the peer was judged to be; Nobody before that.
func (l *link) Class() Class {
	c, _ := l.class.Load().(Class)
	return c
}

// linkOf is the link below a connection that this package made.
func linkOf(c net.Conn) *link {
	if t, ok := c.(*tls.Conn); ok {
		if l, ok := t.NetConn().(*link); ok {
			return l
		}
	}
	return nil
}

// Close ends the connection. It is what everybody calls, the TLS above it too.
func (l *link) Close() error {
	if !l.gone.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	l.links.drop(l)
	return l.Conn.Close()
}

// links are the open connections of a port or of a dialer.
type links struct {
	mu     sync.Mutex
	open   map[*link]struct{}
	closed bool
	// shaking and nameless count connections by their source: those in their
	// handshake and those without a certificate.
	shaking, nameless tally
}

func newLinks() *links {
	return &links{
		open:     map[*link]struct{}{},
		shaking:  tally{most: 1024, each: 128, by: map[netip.Prefix]int{}},
		nameless: tally{most: 256, each: 8, by: map[netip.Prefix]int{}},
	}
}

// tally counts connections by source. It is guarded by the links' mu.
type tally struct {
	all, most, each int
	by              map[netip.Prefix]int
}

func (t *tally) add(from netip.Prefix) bool {
	if !from.IsValid() {
		return true
	}
	if t.all >= t.most || t.by[from] >= t.each {
		return false
	}
	t.all++
	t.by[from]++
	return true
}

func (t *tally) remove(from netip.Prefix) {
	if !from.IsValid() {
		return
	}
	t.all--
	if t.by[from]--; t.by[from] == 0 {
		delete(t.by, from)
	}
}

// source is what an address is counted as: itself, or its /64.
func source(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// add takes a connection before its handshake; nil if there are too many. Those
// of our own making have no source, and are not counted.
func (s *links) add(c net.Conn, from netip.Prefix) *link {
	resendSoon(c)
	l := &link{Conn: c, links: s, source: from}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.shaking.add(l.source) {
		return nil
	}
	s.open[l] = struct{}{}
	return l
}

// admit ends a connection's handshake: who is there is known. It is false if
// there are too many without a certificate, or the connection has ended.
func (s *links) admit(l *link, n pki.Node, chain []*x509.Certificate, raft bool, life time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[l]; !ok {
		return false
	}
	if n.ID == "" && !s.nameless.add(l.source) {
		return false
	}
	s.shaking.remove(l.source)
	l.node, l.chain, l.raft = n, chain, raft
	l.end = time.AfterFunc(life, func() { _ = l.Close() })
	return true
}

func (s *links) drop(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[l]; !ok {
		return
	}
	delete(s.open, l)
	switch {
	case l.end == nil:
		s.shaking.remove(l.source)
		return
	case l.node.ID == "":
		s.nameless.remove(l.source)
	}
	l.end.Stop()
}

// judged are the connections of nodes, once they have a class.
func (s *links) judged() []*link {
	return s.all(func(l *link) bool { return l.end != nil && l.node.ID != "" && l.class.Load() != nil })
}

func (s *links) all(which func(*link) bool) []*link {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*link
	for l := range s.open {
		if which(l) {
			all = append(all, l)
		}
	}
	return all
}

// closeAll ends all connections, now and from now on.
func (s *links) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, l := range s.all(func(*link) bool { return true }) {
		_ = l.Close()
	}
}
