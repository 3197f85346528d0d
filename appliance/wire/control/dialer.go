package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

const (
	// dialTime is how long it may take until a connection can be used.
	dialTime = 5 * time.Second
	// pingAfter is after what silence a peer is asked for a sign of life, for
	// which it has as long again.
	pingAfter = 5 * time.Second
)

// DialerConfig is what a dialer needs.
type DialerConfig struct {
	Identity func() *Identity
	// Resolve is where a node's control port is, host:port, or empty if that is
	// not known. It is asked for peers without an address.
	Resolve func(nodeID string) string
	// Dial makes connections; nil means [net.Dialer].
	Dial   dialFunc
	Logger *slog.Logger
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// Dialer reaches managers' control ports with one h2 connection for each, which
// is made when it is needed and replaced when it breaks or the node has another
// certificate. What is under way on a connection then goes on until it is done.
type Dialer struct {
	cfg   DialerConfig
	links *links

	mu     sync.Mutex
	peers  map[wire.Peer]*peer
	closed bool
}

// peer is the connection to a manager.
type peer struct {
	// turn is held while the fields are looked at or a connection is made.
	turn chan struct{}
	conn *http.ClientConn
	link *link
	leaf []byte // our own certificate there
}

// NewDialer makes a dialer.
func NewDialer(cfg DialerConfig) *Dialer {
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	return &Dialer{cfg: cfg, links: newLinks(), peers: map[wire.Peer]*peer{}}
}

// Close ends all connections.
func (d *Dialer) Close() {
	d.mu.Lock()
	d.closed = true
	d.peers = nil
	d.mu.Unlock()
	d.links.closeAll()
}

// locate is where a peer is reached.
func (d *Dialer) locate(to wire.Peer) (string, error) {
	if to.Addr == "" && d.cfg.Resolve != nil {
		to.Addr = d.cfg.Resolve(to.NodeID)
	}
	if to.Addr == "" {
		return "", object.Errorf(errdefs.ErrUnavailable, "dial node %s: its address is not known", to.NodeID)
	}
	return to.Addr, nil
}

// connect makes a connection to node to, which may be empty, at addr, or where
// the node is known to be.
func (d *Dialer) connect(ctx context.Context, id *Identity, in *links, proto, to, addr string) (*tls.Conn, error) {
	addr, err := d.locate(wire.Peer{NodeID: to, Addr: addr})
	if err != nil {
		return nil, err
	}
	if id.own() == nil {
		return nil, object.Errorf(errdefs.ErrUnavailable, "dial %s: this node has no certificate", addr)
	}
	conn, err := shake(ctx, d.cfg.Dial, in, addr, id.clientTLS(proto, to))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	cs := conn.ConnectionState()
	node, err := pki.Subject(cs.PeerCertificates[0]) // which the handshake has verified
	l := linkOf(conn)
	// The earlier end of both certificates.
	life := time.Until(cs.PeerCertificates[0].NotAfter)
	if own := id.Certificate.Leaf; own != nil {
		life = min(life, time.Until(own.NotAfter))
	}
	if err == nil && !in.admit(l, node, cs.PeerCertificates, proto == protoRaft, life) {
		err = errClosed
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}

// shake makes a connection and its handshake.
func shake(ctx context.Context, dial dialFunc, in *links, addr string, cfg *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := in.add(raw, netip.Prefix{})
	if l == nil {
		_ = raw.Close()
		return nil, errClosed
	}
	conn := tls.Client(l, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = l.Close()
		return nil, err
	}
	return conn, nil
}

// speakH2 is the h2 client of a connection.
func speakH2(ctx context.Context, conn *tls.Conn) (*http.ClientConn, error) {
	t := &http.Transport{
		DialTLSContext:     func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableCompression: true,
		Protocols:          new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     1 << 20,
			MaxReceiveBufferPerConnection: 4<<20 - 1,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingAfter,
		},
	}
	t.Protocols.SetHTTP2(true)
	return t.NewClientConn(ctx, "https", "swarm-manager:443")
}

// peer is the place for the connection to a manager.
func (d *Dialer) peer(to wire.Peer) (*peer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	p := d.peers[to]
	if p == nil {
		p = &peer{turn: make(chan struct{}, 1)}
		d.peers[to] = p
	}
	return p, nil
}

// reserve gives a connection on which one request may be made, and the identity
// that it was made with.
func (d *Dialer) reserve(ctx context.Context, to wire.Peer) (*http.ClientConn, *link, *Identity, error) {
	addr, err := d.locate(to)
	if err != nil {
		return nil, nil, nil, err
	}
	to.Addr = addr
	p, err := d.peer(to)
	if err != nil {
		return nil, nil, nil, err
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, nil, context.Cause(ctx)
	}
	defer func() { <-p.turn }()
	id := d.cfg.Identity()
	if p.conn != nil {
		if slices.Equal(p.leaf, id.own()) && p.conn.Reserve() == nil {
			return p.conn, p.link, id, nil
		}
		retire(p.conn) // broken, full, or of another certificate
		p.conn, p.link = nil, nil
	}
	conn, err := d.connect(ctx, id, d.links, protoH2, to.NodeID, to.Addr)
	if err != nil {
		return nil, nil, nil, err
	}
	cc, err := speakH2(ctx, conn)
	if err == nil {
		err = cc.Reserve()
	}
	if err != nil {
		_ = linkOf(conn).Close()
		return nil, nil, nil, fmt.Errorf("dial %s: %w", to.Addr, err)
	}
	p.conn, p.link, p.leaf = cc, linkOf(conn), id.own()
	return p.conn, p.link, id, nil
}

// retire ends a connection when nothing is under way on it any more.
func retire(c *http.ClientConn) {
	c.SetStateHook(func(c *http.ClientConn) {
		if c.InFlight() == 0 {
			_ = c.Close()
		}
	})
	if c.InFlight() == 0 {
		_ = c.Close()
	}
}

// Do sends a request to a manager; to.NodeID may be empty, which means any. The
// request's URL is the path of a route without the prefix of its class. An
// answer of 300 and above is an error: [NotLeader], or the refusal's kind and
// text. Do does not try again.
func (d *Dialer) Do(ctx context.Context, to wire.Peer, req *http.Request) (*http.Response, error) {
	resp, _, err := d.do(ctx, to, req)
	return resp, err
}

func (d *Dialer) do(ctx context.Context, to wire.Peer, req *http.Request) (*http.Response, *link, error) {
	conn, l, id, err := d.reserve(ctx, to)
	if err != nil {
		return nil, nil, err
	}
	req = req.WithContext(ctx)
	err = address(req, id.Class().prefix())
	if err == nil {
		err = id.Hello(req.Header, to.NodeID)
	}
	if err != nil {
		conn.Release()
		return nil, nil, err
	}
	resp, err := roundTrip(conn, req)
	return resp, l, err
}

// address completes a request's URL.
func address(req *http.Request, prefix string) error {
	if prefix == "" {
		return errors.New("the node's certificate is of no role")
	}
	u := *req.URL
	u.Scheme, u.Host, u.Path = "https", "swarm-manager", prefix+u.Path
	if u.RawPath != "" {
		u.RawPath = prefix + u.RawPath
	}
	req.URL = &u
	req.Header = req.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	return nil
}

// ErrUnanswered says that a request was sent, perhaps, and its answer did not
// come: what was asked for may have been done. After any other error it was not.
var ErrUnanswered = errors.New("no answer")

func roundTrip(conn *http.ClientConn, req *http.Request) (*http.Response, error) {
	resp, err := conn.RoundTrip(req)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrUnavailable, "%s %s: %w: %w", req.Method, req.URL.Path, ErrUnanswered, err)
	}
	if err := refused(resp); err != nil {
		return nil, err
	}
	return resp, nil
}
