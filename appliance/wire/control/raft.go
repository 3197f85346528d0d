package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"skep/store/object"
)

// layer is Raft's side of a port. Members' addresses are their node IDs.
type layer struct {
	port  *Port
	addr  nodeAddr
	conns chan net.Conn
	dial  func(to string, timeout time.Duration) (net.Conn, error)

	once sync.Once
	done chan struct{}
}

// nodeAddr is the address of a member: its node ID.
type nodeAddr string

func (nodeAddr) Network() string  { return "skep" }
func (a nodeAddr) String() string { return string(a) }

// Layer is what Raft speaks through, for one replica: it takes the place of the
// one before. Dialing ends with ctx; closing it ends Raft's connections, and
// those of other members are then refused.
func (p *Port) Layer(ctx context.Context) raft.StreamLayer {
	l := &layer{port: p, addr: nodeAddr(p.cfg.Identity().NodeID), conns: make(chan net.Conn), done: make(chan struct{})}
	l.dial = func(to string, timeout time.Duration) (net.Conn, error) {
		dctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return p.dialRaft(dctx, l, to)
	}
	p.mu.Lock()
	old := p.layer
	p.layer = l
	p.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	return l
}

// Accept gives the connection of a member.
func (l *layer) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Dial connects to the member whose node ID address is.
func (l *layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return l.dial(string(address), timeout)
}

func (l *layer) Close() error {
	l.once.Do(func() {
		close(l.done)
		for _, k := range l.port.links.all(func(k *link) bool { return k.layer == l }) {
			_ = k.Close()
		}
	})
	return nil
}

func (l *layer) Addr() net.Addr { return l.addr }

func (l *layer) closed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// take makes a connection one of the layer's.
func (l *layer) take(k *link) error {
	k.links.mu.Lock()
	k.layer = l
	k.links.mu.Unlock()
	if l.closed() {
		return errClosed
	}
	return nil
}

// welcomeRaft says hello to a member and hands its connection to the layer.
func (p *Port) welcomeRaft(ctx context.Context, k *link, conn *tls.Conn) error {
	if p.judge(k) != Manager {
		return fmt.Errorf("node %s may not speak raft", k.node.ID)
	}
	p.mu.Lock()
	l := p.layer
	p.mu.Unlock()
	if err := conn.SetDeadline(time.Now().Add(shakeTime)); err != nil {
		return err
	}
	err := p.cfg.Identity().answer(conn, k.node, func() error {
		if l == nil || l.take(k) != nil {
			return object.Errorf(errdefs.ErrUnavailable, "node %s runs no replica", p.cfg.Identity().NodeID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	select {
	case l.conns <- conn:
		return nil
	case <-l.done:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dialRaft connects to a member. The connection is one of the port's: a review
// ends it too.
func (p *Port) dialRaft(ctx context.Context, l *layer, to string) (net.Conn, error) {
	if l.closed() {
		return nil, net.ErrClosed
	}
	id := p.cfg.Identity()
	conn, err := p.cfg.Dialer.connect(ctx, id, p.links, protoRaft, to, "")
	if err != nil {
		return nil, err
	}
	k := linkOf(conn)
	fail := func(err error) (net.Conn, error) {
		_ = k.Close()
		return nil, fmt.Errorf("dial raft of node %s: %w", to, err)
	}
	if p.classify(k) != Manager {
		return fail(object.Errorf(errdefs.ErrPermissionDenied, "it is no manager"))
	}
	if err := l.take(k); err != nil {
		return fail(err)
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return fail(err)
	}
	if err := id.greet(conn, to); err != nil {
		return fail(err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fail(err)
	}
	return conn, nil
}
