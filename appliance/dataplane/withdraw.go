package dataplane

import (
	"context"
	"maps"
	"time"

	"skep/appliance/wire"
	"skep/store/object"
)

// withdrawWait is how long Withdraw waits at most until nothing is led there.
const withdrawWait = time.Second

// Withdraw leads nothing new from this node to a container of its own, and
// returns when that is so, or after a second; connections that it has go on.
// The managers have all nodes do so before they stop a task: then there is
// nothing to do. This is for what they did not ask for; they are told, and have
// the other nodes follow.
func (p *Plane) Withdraw(ctx context.Context, id string) error {
	m := p.member(id)
	if m == nil {
		return nil // nothing of the swarm leads to it
	}
	p.mu.Lock()
	changed := p.lessen(m.endpoint, draining)
	turn, done := p.turns+1, p.turned
	p.mu.Unlock()
	if !changed {
		return nil
	}
	p.wake()
	return p.awaitTurn(ctx, turn, done)
}

// awaitTurn waits for the end of a round. done is of the time before it began.
func (p *Plane) awaitTurn(ctx context.Context, turn uint64, done chan struct{}) error {
	enough := time.NewTimer(withdrawWait)
	defer enough.Stop()
	for {
		select {
		case <-done:
		case <-enough.C:
			p.cfg.Logger.WarnContext(ctx, "did not withdraw a container in time")
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		p.mu.Lock()
		if p.ended >= turn {
			p.mu.Unlock()
			return nil
		}
		done = p.turned
		p.mu.Unlock()
	}
}

// lessen has an endpoint of this node take less part than the managers say. It
// reports whether that makes a difference. The caller holds mu.
func (p *Plane) lessen(e object.Endpoint, to part) (changed bool) {
	next := maps.Clone(p.leaving)
	for _, o := range e.Overlays {
		now := p.led(o)
		if was, ok := p.leaving[o.Task]; ok {
			now = min(now, was)
		}
		if now > to {
			next[o.Task] = to
			changed = true
		}
	}
	if changed {
		p.leaving = next
	}
	return changed
}

// led is the part that the managers give an endpoint.
func (p *Plane) led(o object.Overlay) part {
	if p.view == nil || p.view.Networks[o.Network] == nil {
		return absent
	}
	return partOf(p.view.Networks[o.Network].Endpoints[o.Task].State)
}

// restore gives an endpoint the part that the managers say. The caller holds mu.
func (p *Plane) restore(e object.Endpoint) {
	next := maps.Clone(p.leaving)
	for _, o := range e.Overlays {
		delete(next, o.Task)
	}
	if len(next) != len(p.leaving) {
		p.leaving = next
		p.wake()
	}
}

// prune forgets those that the managers know nothing of any more. The caller
// holds mu.
func (p *Plane) prune() {
	if len(p.leaving) == 0 {
		return
	}
	next := map[string]part{}
	if p.view != nil {
		for _, m := range p.view.Networks {
			for id, part := range p.leaving {
				if _, ok := m.Endpoints[id]; ok {
					next[id] = part
				}
			}
		}
	}
	if len(next) != len(p.leaving) {
		p.leaving = next
	}
}

// beginTurn begins a round: what was set before is part of it.
func (p *Plane) beginTurn() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turns++
	return p.turns
}

// endTurn says that what was set when the round began is as it is to be, as far
// as it could be made.
func (p *Plane) endTurn(turn uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = turn
	close(p.turned)
	p.turned = make(chan struct{})
}

// lessens reports whether endpoints of a network take another part because of
// what this node decided by itself.
func (in *input) lessens(o input, m *wire.NetworkMembers) bool {
	for _, pair := range [][2]map[string]part{{in.leaving, o.leaving}, {o.leaving, in.leaving}} {
		for id, had := range pair[0] {
			if has, ok := pair[1][id]; ok && has == had {
				continue
			}
			if _, ok := m.Endpoints[id]; ok {
				return true
			}
		}
	}
	return false
}
