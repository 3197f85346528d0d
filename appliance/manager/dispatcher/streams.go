package dispatcher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"skep/store/object"
)

// answer is how long an invited node has to open the stream.
const answer = 10 * time.Second

// streams pairs those who want to talk to a node with the streams that the node
// opens. A stream's name is random and good for one stream of one node.
type streams struct {
	pairing sync.Mutex
	wanted  map[string]*pairing // by name; guarded by pairing
}

// pairing is a call that waits for its stream.

type pairing struct {
	node string
	conn chan net.Conn // size 1
}

// Connect is a connection to a node's agent, which must have a session with
// this manager. The caller closes it.
func (d *Dispatcher) Connect(ctx context.Context, node string) (net.Conn, error) {
	t := d.term.Load()
	if t == nil {
		return nil, errNotLeading()
	}
	p := &pairing{node: node, conn: make(chan net.Conn, 1)}
	name := rand.Text() // 130 bits
	d.want(name, p)
	conn, err := t.await(ctx, name, p)
	if err != nil {
		return nil, errors.Join(err, d.unwant(name, p))
	}
	return conn, nil
}

// await invites the node and waits for the stream.
func (t *term) await(ctx context.Context, name string, p *pairing) (net.Conn, error) {
	if !t.invite(p.node, name) {
		return nil, object.Errorf(errdefs.ErrUnavailable, "node %s is not available", p.node)
	}
	timer := time.NewTimer(answer)
	defer timer.Stop()
	select {
	case conn := <-p.conn:
		return conn, nil
	case <-t.ended:
		return nil, errNotLeading()
	case <-timer.C:
		return nil, object.Errorf(errdefs.ErrUnavailable, "node %s does not answer", p.node)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *streams) want(name string, p *pairing) {
	s.pairing.Lock()
	defer s.pairing.Unlock()
	s.wanted[name] = p
}

// unwant closes a stream that came too late.
func (s *streams) unwant(name string, p *pairing) error {
	s.pairing.Lock()
	defer s.pairing.Unlock()
	delete(s.wanted, name)
	select {
	case conn := <-p.conn:
		return conn.Close()
	default:
		return nil
	}
}

// Attach hands a stream that a node opened to who asked for it, and returns when
// that one has closed it. The error is of kind not found if nobody asked.
func (d *Dispatcher) Attach(ctx context.Context, node, stream string, conn net.Conn) error {
	lent := &lent{Conn: conn, closed: make(chan struct{})}
	if err := d.pair(node, stream, lent); err != nil {
		return errors.Join(err, conn.Close())
	}
	select {
	case <-lent.closed:
		return nil
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), lent.Close())
	}
}

func (s *streams) pair(node, stream string, conn net.Conn) error {
	s.pairing.Lock()
	defer s.pairing.Unlock()
	p := s.wanted[stream]
	if p == nil || p.node != node {
		return object.Errorf(errdefs.ErrNotFound, "node %s opens a stream that nobody asked for", node)
	}
	delete(s.wanted, stream)
	p.conn <- conn
	return nil
}

// lent is a connection that tells its owner when it is closed.
type lent struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	err    error
}

func (l *lent) Close() error {
	l.once.Do(func() {
		if err := l.Conn.Close(); err != nil {
			l.err = fmt.Errorf("close stream: %w", err)
		}
		close(l.closed)
	})
	return l.err
}

// CloseWrite ends one direction, if the stream can do that.
func (l *lent) CloseWrite() error { return closeWrite(l.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// Reach joins conn, on which another manager speaks, to a node's agent. It
// returns when both directions have ended, and closes conn.
func (d *Dispatcher) Reach(ctx context.Context, node string, conn net.Conn) error {
	there, err := d.Connect(ctx, node)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(conn.Close(), there.Close()) }) // the copying says what went wrong
	defer stop()
	g := new(errgroup.Group)
	g.Go(func() error { return forward(there, conn) })
	g.Go(func() error { return forward(conn, there) })
	return errors.Join(g.Wait(), conn.Close(), there.Close())
}

func forward(to, from net.Conn) error {
	_, err := io.Copy(to, from)
	return errors.Join(err, closeWrite(to))
}
