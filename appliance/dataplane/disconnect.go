package dataplane

import (
	"context"
	"errors"
	"slices"
)

// Disconnect removes an endpoint, in the opposite order of Connect. One that is
// not there is no error.
func (p *Plane) Disconnect(ctx context.Context, id string) error {
	done, err := p.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if m := p.member(id); m != nil {
		// What this node knows first, and what the managers need not tell.
		p.mu.Lock()
		p.lessen(m.endpoint, absent)
		p.mu.Unlock()
		return p.disconnect(ctx, m)
	}
	return p.cfg.Attach.Disconnect(ctx, id)
}

// disconnect removes a member. If that fails it is still known, and the next
// call tries again.
func (p *Plane) disconnect(ctx context.Context, m *member) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up = false
	if err := m.dismantle(ctx, p); err != nil {
		return err
	}
	p.forget(m)
	return nil
}

// dismantle removes what was made of the member. Connections to it that others
// have are cut by those who forget it; those of the bridge by net/attach.
func (m *member) dismantle(ctx context.Context, p *Plane) error {
	id := m.endpoint.ID
	p.cfg.DNS.Shut(id)
	m.named, m.joined = false, nil
	var errs []error
	if m.balancer != nil {
		errs = append(errs, m.balancer.Close()) // its rules go with the namespace
		m.balancer, m.balanced = nil, nil
	}
	errs = append(errs, p.cfg.Overlay.Detach(ctx, id), p.cfg.Attach.Disconnect(ctx, id))
	return errors.Join(errs...)
}

// Retain removes all endpoints but these.
func (p *Plane) Retain(ctx context.Context, ids []string) error {
	p.mu.Lock()
	var others []string
	for id := range p.members {
		if !slices.Contains(ids, id) {
			others = append(others, id)
		}
	}
	p.mu.Unlock()
	err := each(others, func(id string) error { return p.Disconnect(ctx, id) })
	// What an earlier process left between two steps is known to one part alone.
	p.cfg.DNS.Retain(ids)
	return errors.Join(err, p.cfg.Overlay.Retain(ctx, ids), p.cfg.Attach.Retain(ctx, ids))
}
