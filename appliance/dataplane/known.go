package dataplane

import (
	"context"
	"maps"
	"slices"
)

// replace makes d what containers that connect follow, and returns those that
// are known.
//
// Invariant: a network does not go while a container counts on it. Whoever was
// known before has it kept here; whoever comes later does not find it in d.
func (p *Plane) replace(d *desired) []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.from.view != nil && p.now != nil {
		for id, had := range p.now.networks {
			if d.networks[id] == nil && p.attached(id) {
				d.networks[id] = had
				p.wake()
			}
		}
	}
	p.now = d
	close(p.changed)
	p.changed = make(chan struct{})
	return slices.Collect(maps.Values(p.members))
}

// begin waits until no other verb works on the container. The function that it
// returns lets the next one go on.
func (p *Plane) begin(ctx context.Context, id string) (func(), error) {
	for {
		p.mu.Lock()
		other, ok := p.busy[id]
		if !ok {
			mine := make(chan struct{})
			p.busy[id] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.busy, id)
				p.mu.Unlock()
				close(mine)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// followed notes whether the last plan was.
func (p *Plane) followed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = err
}

// member is what is known of a container, nil if it is on no network of the swarm.
func (p *Plane) member(id string) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members[id]
}

// know makes m count from the next plan on.
func (p *Plane) know(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members[m.endpoint.ID] = m
	p.restore(m.endpoint)
}

// forget lets the networks go that only this container was on.
func (p *Plane) forget(m *member) {
	p.mu.Lock()
	delete(p.members, m.endpoint.ID)
	p.mu.Unlock()
	p.wake()
}

func (p *Plane) current() *desired {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}
