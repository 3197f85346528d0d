package dispatcher

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/endpoints"
	"skep/appliance/manager/loop"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// term is what a dispatcher knows while it leads.
type term struct {
	cfg    Config
	ended  chan struct{} // closed when the term is over
	wakeup chan struct{} // size 1: there are reports to write, or a node's time may be up

	soon    chan struct{} // size 1: clocks or beliefs have changed
	beliefs *beliefs
	// managers are the peers that all nodes are told; owned by follow.
	managers atomic.Pointer[[]wire.Peer]
	roster   *roster
	spread   spread
	holding  sync.Mutex // held while Config.Holdings is called

	mu         sync.Mutex // guards all below
	sessions   map[string]*session
	clocks     map[string]*clock // of the nodes that are not down
	registered map[string][]time.Time
	reports    []report
}

func newTerm(cfg Config, b *beliefs) *term {
	return &term{
		cfg:        cfg,
		ended:      make(chan struct{}),
		wakeup:     make(chan struct{}, 1),
		soon:       make(chan struct{}, 1),
		sessions:   map[string]*session{},
		clocks:     map[string]*clock{},
		beliefs:    b,
		roster:     newRoster(),
		registered: map[string][]time.Time{},
		spread:     spread{audience: endpoints.NewAudience()},
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// register lets a session take its node over.
func (t *term) register(s *session, now time.Time) error {
	if _, ok := t.cfg.Store.Snapshot().Nodes.Get(s.node); !ok {
		return object.Errorf(errdefs.ErrNotFound, "node %s not found", s.node)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.another(s, now) {
		// Not counted: it is not the node that registers too often.
		return object.Errorf(errdefs.ErrPermissionDenied,
			"node %s is connected from elsewhere (%s): another machine has the same identity, as after its data directory was copied; run \"docker swarm leave --force\" on the one that is not to be the node",
			s.node, cmp.Or(t.sessions[s.node].address, "this manager"))
	}
	var late []time.Time
	for _, at := range t.registered[s.node] {
		if now.Sub(at) < registrationSpan {
			late = append(late, at)
		}
	}
	if len(late) >= maxRegistrations {
		return object.Errorf(errdefs.ErrResourceExhausted, "node %s exceeded rate limit count of registrations", s.node)
	}
	t.registered[s.node] = append(late, now)
	if old := t.sessions[s.node]; old != nil {
		close(old.replaced)
	}
	t.sessions[s.node] = s
	t.spread.join(s)
	t.clocks[s.node] = &clock{until: now.Add(missed * t.period()), heard: now}
	signal(t.soon)
	return nil
}

// another tells whether a session is of another machine than the one that has
// the node's session and is alive. A node that starts again, or comes by another
// way, is none. The caller holds mu.
func (t *term) another(s *session, now time.Time) bool {
	old, c := t.sessions[s.node], t.clocks[s.node]
	if old == nil || c == nil || old.instance == s.instance || old.address == s.address {
		return false
	}
	period := t.period()
	return now.Before(c.heard.Add(period + 2*period/inexact))
}

func (t *term) unregister(s *session, now time.Time) {
	t.holding.Lock()
	defer t.holding.Unlock()
	t.mu.Lock()
	if t.sessions[s.node] == s {
		delete(t.sessions, s.node)
		if c := t.clocks[s.node]; c != nil {
			c.lost = now
			signal(t.soon)
		}
	}
	t.spread.leave(s)
	alone := t.sessions[s.node] == nil
	t.mu.Unlock()
	if alone && t.cfg.Holdings != nil {
		t.cfg.Holdings(s.node, nil)
	}
}

// hold passes on what a node says of its images.
func (t *term) hold(s *session, h *wire.Holdings) {
	if t.cfg.Holdings == nil {
		return
	}
	t.holding.Lock()
	defer t.holding.Unlock()
	t.mu.Lock()
	current := t.sessions[s.node] == s
	t.mu.Unlock()
	if current {
		t.cfg.Holdings(s.node, h)
	}
}

// holds notes which of the gossip's keys a node has.
func (t *term) holds(s *session, version uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.keys = version
}

// invite asks a node to open a stream.
func (t *term) invite(node, stream string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[node]
	if s != nil {
		s.poke(func(o *outbox) { o.invitations = append(o.invitations, stream) })
	}
	return s != nil
}

// generation is that of the certificate by which a node has its session.
func (t *term) generation(node string) (g uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[node]
	if s == nil {
		return 0, false
	}
	return s.generation, true
}

// follow wakes the sessions for which there may be something new, and ends
// those of nodes that were removed.
func (t *term) follow(ctx context.Context) error {
	return loop.Follow(ctx, t.cfg.Store, func(prev *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
		peers := ch.All
		for _, k := range ch.Keys {
			peers = peers || k.Kind == object.KindNode && !same(peer(prev, k.ID), peer(ch.Snapshot, k.ID))
		}
		if peers {
			t.managers.Store(managers(ch.Snapshot))
		}
		moved := t.roster.follow(ch)
		turn := t.followNetworks(ch, now)
		t.mu.Lock()
		defer t.mu.Unlock()
		for node := range t.sessions {
			if peers {
				t.wake(node, func(o *outbox) { o.swarm = true })
			}
			if moved {
				t.wake(node, func(o *outbox) { o.nodes = true })
			}
			if turn.All || turn.Nodes[node] {
				t.wake(node, func(o *outbox) { o.networks = true })
			}
			if ch.All {
				t.wake(node, func(o *outbox) { o.assign = true })
				t.end(ch.Snapshot, node)
			}
		}
		for _, k := range ch.Keys {
			t.changed(prev, ch.Snapshot, k)
		}
		t.release(turn.Released)
		return loop.Changes{}, turn.Next
	})
}

// changed wakes the sessions that one changed object concerns. The caller holds mu.
func (t *term) changed(prev, snap *store.Snapshot, k store.Key) {
	switch k.Kind {
	case object.KindTask:
		for _, s := range []*store.Snapshot{prev, snap} {
			if task, ok := s.Tasks.Get(k.ID); ok {
				t.wake(task.NodeID, func(o *outbox) { o.assign = true })
			}
		}
	case object.KindCluster:
		for node := range t.sessions {
			t.wake(node, func(o *outbox) { o.swarm = true })
		}
	case object.KindNode:
		t.wake(k.ID, func(o *outbox) { o.swarm = true })
		if tunnelEnd(prev, k.ID) != tunnelEnd(snap, k.ID) {
			for node := range t.sessions {
				t.wake(node, func(o *outbox) { o.tunnels = true })
			}
		}
		t.end(snap, k.ID)
		t.remind(snap, k.ID)
	default:
	}
}

func (t *term) wake(node string, do func(*outbox)) {
	if s := t.sessions[node]; s != nil {
		s.poke(do)
	}
}

// end ends the session of a node that is no more.
func (t *term) end(snap *store.Snapshot, node string) {
	if _, ok := snap.Nodes.Get(node); ok {
		return
	}
	delete(t.clocks, node)
	t.wake(node, func(o *outbox) {
		o.refuse = object.Errorf(wire.ErrExpelled, "Permission denied: node %s was removed from swarm", node)
	})
}

// remind repeats what a node said of itself as a replica, before it was to be one.
func (t *term) remind(snap *store.Snapshot, node string) {
	n, ok := snap.Nodes.Get(node)
	s := t.sessions[node]
	if !ok || s == nil || s.member == nil || n.Spec.Role != swarm.NodeRoleManager || n.ManagerStatus != nil {
		return
	}
	t.reports = append(t.reports, report{node: node, member: s.member})
	signal(t.wakeup)
}
