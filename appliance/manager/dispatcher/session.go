package dispatcher

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/manager/endpoints"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

// session is one connection of one node.
type session struct {
	node string
	// generation is that of the node's certificate; 0 in the same process.
	generation uint64
	instance   string       // the process that has the node's identity
	address    string       // where it speaks from; empty in the same process
	member     *wire.Member // guarded by the term's mu: what the node said last
	conn       *wire.Conn
	replaced   chan struct{} // closed when another session takes over
	news       chan struct{} // size 1: there is something in out
	pending    atomic.Int32  // reports that are not written yet
	keys       uint64        // guarded by the term's mu: the version of the gossip's keys that the node has
	// tunnelled says that the node was told keys of encrypted networks, and
	// tunnels is the version of those that it has. Both are guarded by the term's mu.
	tunnelled bool
	tunnels   uint64

	// cursor is how far the node was told of its networks; the audience's.
	cursor *endpoints.Cursor

	mu  sync.Mutex
	out outbox // guarded by mu
}

// outbox is what is to be sent.
type outbox struct {
	beat, assign, swarm, nodes, networks, tunnels bool
	// ask: the node is to show that it is alive.
	ask         bool
	invitations []string
	acknowledge uint64 // statuses up to this are stored; 0 is none
	// unanswered: the node has not yet stored the last assignments.
	unanswered bool
	// unprogrammed: the node has not yet programmed the last news of its networks,
	// and has time to.
	unprogrammed bool
	refuse       error // ends the session
}

var (
	errReplaced = errors.New("another session took over")
	errGone     = errors.New("the node left the swarm")
	errTermOver = errors.New("this manager no longer leads")
)

func (s *session) poke(change func(*outbox)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.out)
	signal(s.news)
}

// take is what is to be sent now.
func (s *session) take() outbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.out
	s.out = outbox{unanswered: o.unanswered, unprogrammed: o.unprogrammed}
	if o.unanswered {
		s.out.assign = o.assign
		o.assign = false
	} else if o.assign {
		s.out.unanswered = true
	}
	// A task's networks come before the task.
	if o.unprogrammed && !o.assign {
		s.out.networks = o.networks
		o.networks = false
	}
	return o
}

func (t *term) serve(ctx context.Context, conn net.Conn, from pki.Node) error {
	node := from.ID
	s := &session{
		node:       node,
		generation: from.Generation,
		address:    address(conn),
		conn:       wire.NewConn(conn),
		replaced:   make(chan struct{}),
		news:       make(chan struct{}, 1),
	}
	m, err := s.conn.Receive(timeout)
	if err != nil {
		return ended(err)
	}
	switch {
	case m.Hello == nil:
		err = object.Errorf(errdefs.ErrInvalidArgument, "session of node %s does not begin with a hello", node)
	case m.Hello.Protocol != wire.Protocol:
		err = object.Errorf(errdefs.ErrInvalidArgument, "node %s speaks protocol %d, this manager %d", node, m.Hello.Protocol, wire.Protocol)
	default:
		s.member, s.instance = m.Hello.Member, m.Hello.Instance
		if err = checkDescription(node, &m.Hello.Description); err == nil {
			err = t.register(s, time.Now())
		}
	}
	if err != nil {
		return errors.Join(err, s.send(&wire.Message{Refusal: wire.Refuse(err)}))
	}
	defer func() { t.unregister(s, time.Now()) }()
	t.cfg.Logger.InfoContext(ctx, "node registered", "node", node)
	t.report(report{
		node: node, state: swarm.NodeStateReady, address: s.address,
		description: &m.Hello.Description, member: m.Hello.Member, dataPath: m.Hello.DataPath, boot: m.Hello.Boot,
	})
	s.poke(func(o *outbox) { o.swarm, o.nodes, o.networks, o.assign = true, true, true, true })
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.listen(s) })
	err = ended(t.talk(gctx, s)) // which says so if the listening ended first
	_ = conn.Close()             // what ends the listening
	_ = g.Wait()
	t.cfg.Logger.InfoContext(ctx, "session ended", "node", node, "err", err)
	return err
}

// ended makes the ends that are nobody's fault no errors.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errReplaced) || errors.Is(err, errGone) || errors.Is(err, errTermOver) {
		return nil
	}
	return err
}

// address is where a node speaks from, if that is on a network.
func address(conn net.Conn) string {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.IP.String()
	}
	return ""
}

// talk sends the node what it is to know.
func (t *term) talk(ctx context.Context, s *session) error {
	welcome := &wire.Welcome{Session: object.NewID(), Period: t.nextPeriod()}
	if err := s.send(&wire.Message{Welcome: welcome}); err != nil {
		return err
	}
	sent := &sent{items: map[item]int{}, slack: time.NewTimer(time.Hour)}
	defer sent.slack.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.ended:
			return errTermOver
		case <-s.replaced:
			return errReplaced
		case <-sent.slack.C:
			s.poke(func(o *outbox) { o.unprogrammed = false })
			continue
		case <-s.news:
		}
		o := s.take()
		if o.refuse != nil {
			return errors.Join(o.refuse, s.send(&wire.Message{Refusal: wire.Refuse(o.refuse)}))
		}
		if err := t.tell(s, sent, o); err != nil {
			return err
		}
	}
}

// tell sends what is in the outbox.
func (t *term) tell(s *session, sent *sent, o outbox) error {
	if o.beat || o.ask {
		next := t.nextPeriod()
		if o.beat {
			t.alive(s, time.Now().Add(missed*next))
		}
		if o.ask {
			next = minPeriod
		}
		if err := s.send(&wire.Message{Beat: &wire.Beat{Period: next}}); err != nil {
			return err
		}
	}
	if o.acknowledge > 0 {
		if err := s.send(&wire.Message{Acknowledge: &wire.Acknowledge{Statuses: o.acknowledge}}); err != nil {
			return err
		}
	}
	for _, name := range o.invitations {
		if err := s.send(&wire.Message{Invite: &wire.Invite{Stream: name}}); err != nil {
			return err
		}
	}
	if o.swarm {
		now, err := sent.news(t.cfg.Store.Snapshot(), *t.managers.Load(), s.node)
		if err == nil && now != nil {
			err = s.send(&wire.Message{Swarm: now})
		}
		if err != nil {
			return err
		}
	}
	if o.nodes {
		if err := t.tellNodes(s, sent); err != nil {
			return err
		}
	}
	if o.swarm || o.networks || o.tunnels {
		if err := t.tellTunnels(s, sent); err != nil {
			return err
		}
	}
	snap := t.spread.followed.Load() // before the networks, which are of this state or a later one
	whole, err := t.tellNetworks(s, sent, o.networks || o.assign)
	if err != nil || !o.assign {
		return err
	}
	if !whole {
		s.poke(func(o *outbox) { o.assign, o.unanswered = true, false })
		return nil
	}
	set, err := sent.next(snap, s.node, t.spread.held)
	if err != nil {
		return err
	}
	if set == nil {
		s.poke(func(o *outbox) { o.unanswered = false })
		return nil
	}
	for _, part := range set.Parts() {
		if err := s.send(&wire.Message{Assignments: part}); err != nil {
			return err
		}
	}
	return nil
}

func (t *term) tellNodes(s *session, sent *sent) error {
	var news *wire.Nodes
	if news, sent.nodes = t.roster.since(sent.nodes); news == nil {
		return nil
	}
	for _, part := range news.Parts() {
		if err := s.send(&wire.Message{Nodes: part}); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) send(m *wire.Message) error { return s.conn.Send(m, timeout) }

func version(n uint64) string { return strconv.FormatUint(n, 10) }
