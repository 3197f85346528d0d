// Package dispatcher keeps the sessions with the nodes' agents while this node
// leads: it tells each node what to do and writes down how far the nodes are.
//
// A node gets one complete set of assignments and then what changes, in order,
// and only what its own tasks need: no node learns another's secrets. Of a node
// the dispatcher takes the node's own description and the status of its own
// tasks, which never goes back. A node that misses three beats is down.
//
// A node listens on nothing. Who wants to talk to one calls [Dispatcher.Connect]:
// the node is invited over its session and opens a stream, which is paired with
// the call by [Dispatcher.Attach].
//
// It decides nothing about tasks, and it does not check who the other side of a
// connection is: whoever calls [Dispatcher.Serve] or Attach has done so.
package dispatcher

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

const (
	// A node beats this often unless the swarm's spec says otherwise, within
	// these bounds, and not exactly: a tenth more or less.
	usualPeriod = 5 * time.Second
	minPeriod   = time.Second
	maxPeriod   = time.Minute
	inexact     = 10

	missed  = 3 // beats until a node is down
	grace   = 6 // the same, after a change of leader
	timeout = 5 * time.Second

	// What one node may make the managers keep: its description, in bytes, and
	// reports that are not written yet.
	maxDescription = 64 << 10
	maxBoot        = 64
	maxPending     = 64

	// A node may register this often in a while.
	maxRegistrations = 3
	registrationSpan = 8 * time.Second
)

// Config is what a dispatcher needs.
type Config struct {
	Store  store.Proposer
	Logger *slog.Logger
	// Holdings, if not nil, takes what nodes say of their images, in order for
	// each node, and nil when a node's session has ended. It must not block.
	Holdings func(node string, h *wire.Holdings)
}

// Dispatcher serves sessions while [Dispatcher.Run] runs.
type Dispatcher struct {
	cfg  Config
	term atomic.Pointer[term] // nil while not leading
	// dialed is unbuffered: what is dialed is taken only while leading.
	dialed  chan dialed
	beliefs beliefs
	streams
}

type dialed struct {
	conn net.Conn
	node string
}

// New is a dispatcher that does not lead yet.
func New(cfg Config) *Dispatcher {
	return &Dispatcher{
		cfg: cfg, dialed: make(chan dialed),
		beliefs: beliefs{dead: map[string]bool{}}, streams: streams{wanted: map[string]*pairing{}},
	}
}

// Run is one term of leadership. It returns when ctx ends or the store fails;
// then all sessions end.
func (d *Dispatcher) Run(ctx context.Context) error {
	t := newTerm(d.cfg, &d.beliefs)
	t.start(time.Now())
	d.term.Store(t)
	defer func() {
		d.term.Store(nil)
		close(t.ended)
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.follow(ctx) })
	g.Go(func() error { return t.write(ctx) })
	g.Go(func() error { return t.watch(ctx) })
	g.Go(func() error { return d.accept(ctx, g) })
	return g.Wait()
}

// Serve holds a session with a node over conn, and closes it at the end. The
// node is what its certificate says. The error is nil if the other side ended
// the session or another one took over.
func (d *Dispatcher) Serve(ctx context.Context, conn net.Conn, node pki.Node) error {
	defer conn.Close()
	t := d.term.Load()
	if t == nil {
		c := wire.NewConn(conn)
		err := errNotLeading()
		// The agent says hello first; over a pipe it would not listen before.
		if _, rerr := c.Receive(timeout); rerr == nil {
			err = errors.Join(err, c.Send(&wire.Message{Refusal: wire.Refuse(err)}, timeout))
		}
		return err
	}
	return t.serve(ctx, conn, node)
}

// Dial connects an agent in the same process, as that node. It waits a little
// for this manager to lead.
func (d *Dispatcher) Dial(ctx context.Context, node string) (net.Conn, error) {
	here, there := net.Pipe()
	t := time.NewTimer(timeout)
	defer t.Stop()
	var err error
	select {
	case d.dialed <- dialed{there, node}:
		return here, nil
	case <-t.C:
		err = errNotLeading()
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, here.Close(), there.Close())
}

// Generation is that of the certificate by which a node has its session, 0 if
// it is in this process; ok says that it has one.
func (d *Dispatcher) Generation(node string) (g uint64, ok bool) {
	if t := d.term.Load(); t != nil {
		return t.generation(node)
	}
	return 0, false
}

// HaveKeys says whether all nodes that are not down have the gossip's keys of
// that version, as they say.
func (d *Dispatcher) HaveKeys(version uint64) bool {
	t := d.term.Load()
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for node := range t.clocks {
		if s := t.sessions[node]; s == nil || s.keys < version {
			return false
		}
	}
	return true
}

// HaveTunnels says whether all nodes that were told keys of encrypted networks
// of that version have them in their kernels, as they say. Those that have no
// session are told all keys that are in force when they have one.
func (d *Dispatcher) HaveTunnels(version uint64) bool {
	t := d.term.Load()
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		if s.tunnelled && s.tunnels < version {
			return false
		}
	}
	return true
}

// accept serves what was dialed in this process.
func (d *Dispatcher) accept(ctx context.Context, g *errgroup.Group) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-d.dialed:
			g.Go(func() error {
				// A session's end is not the end of the term.
				if err := d.Serve(ctx, c.conn, pki.Node{ID: c.node}); err != nil && ctx.Err() == nil {
					d.cfg.Logger.WarnContext(ctx, "session failed", "node", c.node, "err", err)
				}
				return nil
			})
		}
	}
}

func errNotLeading() error {
	return object.Errorf(errdefs.ErrUnavailable, "this manager does not lead the swarm")
}

// period is the time between the beats of a node.
func (t *term) period() time.Duration {
	c := t.cfg.Store.Snapshot().Cluster()
	if c == nil || c.Spec.Dispatcher.HeartbeatPeriod <= 0 {
		return usualPeriod
	}
	return min(max(c.Spec.Dispatcher.HeartbeatPeriod, minPeriod), maxPeriod)
}

// nextPeriod is the time until a node's next beat: not the same for all.
func (t *term) nextPeriod() time.Duration {
	p := t.period()
	return p - p/inexact + rand.N(2*p/inexact)
}
