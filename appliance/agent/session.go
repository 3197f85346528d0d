package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
	"skep/store/object"
)

const (
	timeout    = 5 * time.Second
	minBackoff = 100 * time.Millisecond
	maxBackoff = 8 * time.Second
	// redescribe is how often the node is looked at again.
	redescribe = 20 * time.Second
	// batch is the most statuses in one message.
	batch = 1000
)

// connect keeps a session until ctx ends.
func (a *Agent) connect(ctx context.Context, g *errgroup.Group) error {
	backoff := minBackoff
	for {
		welcomed, err := a.session(ctx, g)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if welcomed {
			backoff = minBackoff
			select {
			case <-a.hurry: // that was before
			default:
			}
		}
		a.cfg.Logger.DebugContext(ctx, "session ended", "err", err)
		if a.cfg.Refused != nil && errdefs.IsPermissionDenied(err) {
			a.cfg.Refused(ctx, err)
		}
		t := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-a.hurry:
			t.Stop()
			backoff = minBackoff
		case <-t.C:
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session is one connection to a manager.
type session struct {
	agent  *Agent
	conn   *wire.Conn
	period chan time.Duration // size 1: the manager's answer to a beat
	news   chan struct{}      // size 1: acknowledge is set

	mu          sync.Mutex
	acknowledge string // guarded by mu: the assignments that are stored

	// Owned by listen.
	patience time.Duration // how long the manager may say nothing
	version  string
	parts    *wire.Assignments // the set that is not whole yet
	view     *wire.View

	// Owned by talk.
	sequence uint64
	flight   map[string]swarm.TaskStatus // statuses that were sent and not acknowledged
	landed   chan uint64                 // size 1: the last sequence that was acknowledged

	over  chan struct{}       // closed when the manager says no more
	swarm chan *wire.Swarm    // size 1: what was said last, not yet passed on
	nodes chan []wire.Peer    // the same of the nodes
	place map[string]string   // owned by listen: where the nodes are
	held  chan *wire.Holdings // to be sent
}

func (a *Agent) session(ctx context.Context, tasks *errgroup.Group) (welcomed bool, err error) {
	desc, err := a.describe(ctx)
	if err != nil {
		return false, err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("connect to manager: %w", err)
	}
	defer conn.Close()
	s := &session{
		agent:  a,
		conn:   wire.NewConn(conn),
		period: make(chan time.Duration, 1),
		news:   make(chan struct{}, 1),
		landed: make(chan uint64, 1),
		over:   make(chan struct{}),
		swarm:  make(chan *wire.Swarm, 1),
		nodes:  make(chan []wire.Peer, 1),
		place:  map[string]string{},
		held:   make(chan *wire.Holdings),
		view:   a.beginView(),
	}
	told := a.telling(ctx, desc)
	if err = s.hello(told); err != nil {
		return false, err
	}
	a.resend()
	g, sctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(s.over)
		return s.listen(ctx, tasks)
	})
	g.Go(func() error {
		// Closing is what ends the listening.
		defer conn.Close()
		return s.talk(sctx, told)
	})
	g.Go(func() error { return s.passOn(sctx) })
	g.Go(func() error { return s.hold(sctx) })
	return true, g.Wait()
}

// hello introduces the node; the manager is to welcome it.
func (s *session) hello(told wire.Describe) error {
	hello := &wire.Hello{
		Protocol: wire.Protocol, Description: told.Description, Member: told.Member,
		DataPath: told.DataPath, Boot: told.Boot, Instance: s.agent.instance,
	}
	if err := s.conn.Send(&wire.Message{Hello: hello}, timeout); err != nil {
		return err
	}
	m, err := s.conn.Receive(timeout)
	switch {
	case err != nil:
		return err
	case m.Refusal != nil:
		return m.Refusal.Err()
	case m.Welcome == nil:
		return errors.New("manager does not welcome this node")
	}
	s.patience = patience(m.Welcome.Period)
	s.period <- m.Welcome.Period
	return nil
}

// patience is how long a manager may say nothing that answers a beat per period.
func patience(period time.Duration) time.Duration { return max(20*time.Second, 3*beatEvery(period)) }

// beatEvery bounds what a manager asks for.
func beatEvery(period time.Duration) time.Duration {
	return min(max(period, time.Second), 2*time.Minute)
}

// describe is the node as it is now; it notes what templates say of it.
func (a *Agent) describe(ctx context.Context) (swarm.NodeDescription, error) {
	d, err := a.cfg.Executor.Describe(ctx)
	if err != nil {
		return d, fmt.Errorf("describe node: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node.Hostname, a.node.Platform = d.Hostname, d.Platform
	return d, nil
}

// resend makes all statuses news for a new session.
func (a *Agent) resend() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, w := range a.workers {
		if s := w.current(); object.Rank(s.State) > object.Rank(swarm.TaskStateAssigned) {
			a.unsent[id] = s
		}
	}
	signal(a.news)
}

// listen takes in what the manager says.
func (s *session) listen(ctx context.Context, tasks *errgroup.Group) error {
	for {
		m, err := s.conn.Receive(s.patience)
		if err != nil {
			return err
		}
		switch {
		case m.Swarm != nil:
			s.agent.toldPort(m.Swarm.DataPathPort)
			select { // replace an older one
			case <-s.swarm:
			default:
			}
			s.swarm <- m.Swarm
		case m.Nodes != nil:
			s.moved(m.Nodes)
		case m.Networks != nil:
			if err := s.networks(m.Networks); err != nil {
				return err
			}
		case m.Tunnels != nil:
			if s.agent.cfg.Tunnels != nil {
				s.agent.cfg.Tunnels(m.Tunnels)
			}
		case m.Invite != nil:
			s.agent.invited(ctx, m.Invite.Stream, tasks)
		case m.Refusal != nil:
			return m.Refusal.Err()
		case m.Beat != nil:
			select { // replace an older one
			case <-s.period:
			default:
			}
			s.period <- m.Beat.Period
			s.patience = patience(m.Beat.Period)
		case m.Acknowledge != nil:
			select {
			case <-s.landed:
			default:
			}
			s.landed <- m.Acknowledge.Statuses
		case m.Assignments != nil:
			if err := s.assigned(ctx, m.Assignments, tasks); err != nil {
				return err
			}
		default:
			return errors.New("manager sent what only nodes send")
		}
	}
}

// assigned takes in a part of a set; with the last one the set is in force.
func (s *session) assigned(ctx context.Context, part *wire.Assignments, tasks *errgroup.Group) error {
	if s.parts == nil {
		if !part.Complete && (s.version == "" || part.AppliesTo != s.version) {
			return fmt.Errorf("assignments apply to %q, not to %q", part.AppliesTo, s.version)
		}
		s.parts = part
	} else {
		if part.ResultsIn != s.parts.ResultsIn {
			return fmt.Errorf("assignments %q end before they are whole", s.parts.ResultsIn)
		}
		s.parts.Items = append(s.parts.Items, part.Items...)
	}
	if part.More {
		return nil
	}
	set := s.parts
	s.parts = nil
	if err := s.agent.assign(ctx, set, tasks); err != nil {
		return err
	}
	s.version = set.ResultsIn
	s.mu.Lock()
	s.acknowledge = set.ResultsIn
	s.mu.Unlock()
	signal(s.news)
	return nil
}

// assign stores a set and does what it says.
func (a *Agent) assign(ctx context.Context, set *wire.Assignments, tasks *errgroup.Group) error {
	a.mu.Lock()
	items := map[item]wire.Item{}
	if !set.Complete {
		items = maps.Clone(a.items)
	}
	a.mu.Unlock()
	for _, i := range set.Items {
		k := item{i.Kind, i.Key}
		if len(i.Data) == 0 {
			delete(items, k)
			continue
		}
		if _, err := i.Unpack(); err != nil {
			return err
		}
		items[k] = i
	}
	a.mu.Lock()
	a.items = items
	retained := a.retained
	a.mu.Unlock()
	if err := a.save(); err != nil {
		return err
	}
	if !retained && set.Complete {
		a.retain(ctx)
	}
	return a.apply(ctx, tasks)
}

// talk tells the manager what is to be told.
func (s *session) talk(ctx context.Context, told wire.Describe) error {
	beat := time.NewTimer(time.Hour)
	defer beat.Stop()
	look := time.NewTicker(redescribe)
	defer look.Stop()
	for {
		var m wire.Message
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-s.period:
			beat.Reset(beatEvery(p))
			continue
		case <-beat.C:
			m.Beat = &wire.Beat{Keys: s.agent.keys.Load()}
		case <-s.news:
			s.mu.Lock()
			m.Acknowledge = &wire.Acknowledge{ResultsIn: s.acknowledge}
			s.mu.Unlock()
		case seq := <-s.landed:
			s.land(seq)
			m.Statuses = s.statuses()
		case <-s.agent.news:
			m.Statuses = s.statuses()
		case m.Holdings = <-s.held:
		case <-s.agent.networks.said:
			m.Programmed = s.agent.sayProgrammed()
		case <-look.C:
			m.Describe = s.agent.changed(ctx, &told)
		case <-s.agent.refresh:
			m.Describe = s.agent.changed(ctx, &told)
		case known := <-s.agent.bye:
			return s.leave(ctx, known)
		}
		if m == (wire.Message{}) {
			continue
		}
		if err := s.conn.Send(&m, timeout); err != nil {
			return err
		}
	}
}

// leave says that the node leaves, and waits for the manager to end the session.
func (s *session) leave(ctx context.Context, known chan<- struct{}) error {
	defer close(known)
	if err := s.conn.Send(&wire.Message{Bye: &wire.Bye{}}, timeout); err != nil {
		return err
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-s.over:
	case <-t.C:
	case <-ctx.Done():
	}
	return errLeft
}

// errLeft ends a session because the node leaves its swarm.
var errLeft = errors.New("the node leaves the swarm")

// land forgets the statuses that the manager has stored.
func (s *session) land(seq uint64) {
	if seq != s.sequence {
		return
	}
	a := s.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, sent := range s.flight {
		if now, ok := a.unsent[id]; ok && now.State == sent.State && now.Timestamp.Equal(sent.Timestamp) {
			delete(a.unsent, id)
		}
	}
	s.flight = nil
}

// statuses are the next to be sent, or nil if there are none or the last have
// not landed yet: then what comes meanwhile goes together.
func (s *session) statuses() *wire.Statuses {
	a := s.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.flight != nil || len(a.unsent) == 0 {
		return nil
	}
	s.sequence++
	s.flight = map[string]swarm.TaskStatus{}
	out := &wire.Statuses{Sequence: s.sequence}
	for id, status := range a.unsent {
		if len(out.Tasks) == batch {
			break
		}
		s.flight[id] = status
		out.Tasks = append(out.Tasks, wire.TaskStatus{ID: id, Status: status})
	}
	return out
}
