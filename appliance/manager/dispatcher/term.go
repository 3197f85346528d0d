package dispatcher

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

const (
	msgLeader  = `Node moved to "unknown" state due to leadership change in cluster`
	msgMissed  = "heartbeat failure"
	msgUnknown = `heartbeat failure for node in "unknown" state`
)

// term is what a dispatcher knows while it leads.
type term struct {
	cfg    Config
	ended  chan struct{} // closed when the term is over
	wakeup chan struct{} // size 1: there are reports to write, or a node's time may be up

	mu       sync.Mutex // guards all below
	sessions map[string]*session
	// expires is when a node is down unless it is heard of.
	expires    map[string]time.Time
	registered map[string][]time.Time
	reports    []report
	soon       chan struct{} // size 1: expires has changed
}

func newTerm(cfg Config) *term {
	return &term{
		cfg:        cfg,
		ended:      make(chan struct{}),
		wakeup:     make(chan struct{}, 1),
		soon:       make(chan struct{}, 1),
		sessions:   map[string]*session{},
		expires:    map[string]time.Time{},
		registered: map[string][]time.Time{},
	}
}

// start gives the nodes that were up time to find the new leader.
func (t *term) start(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.cfg.Store.Snapshot().Nodes.All() {
		if n.Status.State == swarm.NodeStateDown {
			continue
		}
		t.expires[n.ID] = now.Add(grace * period)
		if n.Status.State == swarm.NodeStateReady || n.Status.State == swarm.NodeStateDisconnected {
			t.reports = append(t.reports, report{node: n.ID, state: swarm.NodeStateUnknown, message: msgLeader})
		}
	}
	signal(t.wakeup)
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
	t.expires[s.node] = now.Add(missed * period)
	signal(t.soon)
	return nil
}

func (t *term) unregister(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.node] == s {
		delete(t.sessions, s.node)
	}
}

// alive moves the time at which a node is down.
func (t *term) alive(s *session, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.node] == s {
		t.expires[s.node] = until
	}
}

// follow wakes the sessions whose assignments may have changed, and ends those
// of nodes that were removed.
func (t *term) follow(ctx context.Context) error {
	return loop.Follow(ctx, t.cfg.Store, func(prev *store.Snapshot, ch store.Changes, _ time.Time) (loop.Changes, time.Time) {
		t.mu.Lock()
		defer t.mu.Unlock()
		wake := func(node string) {
			if s := t.sessions[node]; s != nil {
				s.poke(func(o *outbox) { o.assign = true })
			}
		}
		if ch.All {
			for node := range t.sessions {
				wake(node)
			}
		}
		for _, k := range ch.Keys {
			switch k.Kind {
			case object.KindTask:
				if task, ok := ch.Snapshot.Tasks.Get(k.ID); ok {
					wake(task.NodeID)
				}
				if task, ok := prev.Tasks.Get(k.ID); ok {
					wake(task.NodeID)
				}
			case object.KindNode:
				if _, ok := ch.Snapshot.Nodes.Get(k.ID); ok {
					break
				}
				delete(t.expires, k.ID)
				if s := t.sessions[k.ID]; s != nil {
					s.poke(func(o *outbox) {
						o.refuse = object.Errorf(errdefs.ErrNotFound, "node %s was removed from the swarm", k.ID)
					})
				}
			default:
			}
		}
		return loop.Changes{}, time.Time{}
	})
}

// watch reports the nodes that were not heard of in time.
func (t *term) watch(ctx context.Context) error {
	for {
		next := t.expire(time.Now())
		if err := loop.Wait(ctx, t.soon, next); err != nil {
			return err
		}
	}
}

func (t *term) expire(now time.Time) (next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	snap := t.cfg.Store.Snapshot()
	for node, at := range t.expires {
		if at.After(now) {
			next = loop.Earliest(next, at)
			continue
		}
		delete(t.expires, node)
		if s := t.sessions[node]; s != nil {
			delete(t.sessions, node)
			s.poke(func(o *outbox) { o.refuse = fmt.Errorf("node %s: %s", node, msgMissed) })
		}
		message := msgMissed
		if n, ok := snap.Nodes.Get(node); ok && n.Status.State == swarm.NodeStateUnknown {
			message = msgUnknown
		}
		t.reports = append(t.reports, report{node: node, state: swarm.NodeStateDown, message: message})
		signal(t.wakeup)
	}
	return next
}
