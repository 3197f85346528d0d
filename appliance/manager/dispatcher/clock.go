package dispatcher

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/store"
)

const (
	// settle is how long a node whose session ended has to begin another before
	// it is called disconnected.
	settle = time.Second
	// proof is how long a node has to show that it is alive when gossip says
	// that it is not: it is asked to beat in minPeriod.
	proof = minPeriod + 1500*time.Millisecond

	msgLeader  = `Node moved to "unknown" state due to leadership change in cluster`
	msgMissed  = "heartbeat failure"
	msgUnknown = `heartbeat failure for node in "unknown" state`
	msgGone    = "the node left the swarm"
	msgLost    = "node is currently trying to find new manager"
)

// clock says when a node is given up.
type clock struct {
	until time.Time // the node is down then, unless it is heard of
	heard time.Time // when it last was
	lost  time.Time // when its session ended; zero if it has one, or was reported
	asked time.Time // when it was last asked whether it is alive; zero is never
}

// down is when the node is down, as far as is known now. Gossip alone never
// makes a node down: it only takes away the patience with one that does not
// answer or, if it could not be asked since, is silent for more than a beat.
func (c *clock) down(dead bool, period time.Duration) time.Time {
	if !dead {
		return c.until
	}
	soon := c.heard.Add(period + 2*period/inexact)
	if c.asked.After(c.heard) {
		soon = c.asked.Add(proof)
	}
	if soon.Before(c.until) {
		return soon
	}
	return c.until
}

// beliefs are the nodes that gossip takes for dead.
type beliefs struct {
	mu   sync.Mutex
	dead map[string]bool // guarded by mu
}

func (b *beliefs) set(node string, dead bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if dead {
		b.dead[node] = true
	} else {
		delete(b.dead, node)
	}
}

func (b *beliefs) is(node string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead[node]
}

// Hint says what gossip believes of a node.
func (d *Dispatcher) Hint(node string, dead bool) {
	d.beliefs.set(node, dead)
	if t := d.term.Load(); t != nil {
		if dead {
			t.ask(node, time.Now())
		}
		signal(t.soon)
	}
}

// ask has a node show that it is alive.
func (t *term) ask(node string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.clocks[node]; c != nil && t.sessions[node] != nil {
		c.asked = now
		t.wake(node, func(o *outbox) { o.ask = true })
	}
}

// start gives the nodes that were up time to find the new leader. One for which
// an earlier leader waited already gets no more than the rest, and three beats.
func (t *term) start(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	snap := t.cfg.Store.Snapshot()
	period := t.period()
	t.managers.Store(managers(snap))
	t.roster.follow(store.Changes{Snapshot: snap, All: true})
	t.followNetworks(store.Changes{Snapshot: snap, All: true}, now)
	for n := range snap.Nodes.All() {
		if n.Status.State == swarm.NodeStateDown {
			continue
		}
		until := now.Add(grace * period)
		if n.Status.State == swarm.NodeStateUnknown && n.StateSince != 0 {
			rest, least := time.Unix(0, n.StateSince).Add(grace*period), now.Add(missed*period)
			if rest.Before(until) {
				until = rest
			}
			if until.Before(least) {
				until = least
			}
		}
		t.clocks[n.ID] = &clock{until: until, heard: now}
		if n.Status.State == swarm.NodeStateReady || n.Status.State == swarm.NodeStateDisconnected {
			t.reports = append(t.reports, report{node: n.ID, state: swarm.NodeStateUnknown, message: msgLeader})
		}
	}
	signal(t.wakeup)
}

// alive moves the time at which a node is down.
func (t *term) alive(s *session, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.clocks[s.node]; c != nil && t.sessions[s.node] == s {
		c.until = until
	}
}

// heard notes that a node said something.
func (t *term) heard(s *session, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.clocks[s.node]; c != nil && t.sessions[s.node] == s {
		c.heard = now
	}
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
	period := t.period()
	for node, c := range t.clocks {
		if at := c.down(t.beliefs.is(node), period); at.After(now) {
			next = loop.Earliest(next, at)
		} else {
			t.giveUp(node)
			continue
		}
		if c.lost.IsZero() {
			continue
		}
		if at := c.lost.Add(settle); at.After(now) {
			next = loop.Earliest(next, at)
			continue
		}
		c.lost = time.Time{}
		t.reports = append(t.reports, report{node: node, state: swarm.NodeStateDisconnected, message: msgLost})
		signal(t.wakeup)
	}
	return next
}

// gone takes in that a node leaves the swarm: it is down at once.
func (t *term) gone(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.node] != s {
		return
	}
	delete(t.sessions, s.node)
	delete(t.clocks, s.node)
	t.reports = append(t.reports, report{node: s.node, state: swarm.NodeStateDown, message: msgGone})
	signal(t.wakeup)
}

// giveUp reports a node as down and ends its session. The caller holds mu.
func (t *term) giveUp(node string) {
	delete(t.clocks, node)
	if s := t.sessions[node]; s != nil {
		delete(t.sessions, node)
		s.poke(func(o *outbox) { o.refuse = fmt.Errorf("node %s: %s", node, msgMissed) })
	}
	message := msgMissed
	if n, ok := t.cfg.Store.Snapshot().Nodes.Get(node); ok && n.Status.State == swarm.NodeStateUnknown {
		message = msgUnknown
	}
	t.reports = append(t.reports, report{node: node, state: swarm.NodeStateDown, message: message})
	signal(t.wakeup)
}
