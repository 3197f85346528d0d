package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Rewire changes which networks of the swarm an endpoint that is connected is
// on, and what it wants of the resolver; the rest of e does not count. What
// stays is not touched. It waits as Connect does, and if it fails everything is as it was.
func (p *Plane) Rewire(ctx context.Context, e object.Endpoint) (object.Attachment, error) {
	done, err := p.begin(ctx, e.ID)
	if err != nil {
		return object.Attachment{}, err
	}
	defer done()
	at, ok := p.cfg.Attach.Attachment(e.ID)
	switch {
	case !ok:
		return at, object.Errorf(errdefs.ErrNotFound, "container %s is on no network", short(e.ID))
	case at.Namespace == "":
		return at, object.Errorf(errdefs.ErrConflict, "container %s has the node's own network", short(e.ID))
	}
	old := at.Endpoint.Clone()
	m := p.member(e.ID)
	if m == nil {
		m = &member{endpoint: old, at: at, up: true, plugged: true}
	}
	m = m.heir(p, rewired(old, e))
	d, err := p.await(ctx, m.endpoint)
	if err == nil {
		err = wayOut(old, m.endpoint, d)
	}
	if err == nil {
		m = m.heir(p, nameOf(m.endpoint, d))
		err = m.rebuild(ctx, p)
	}
	if err != nil {
		m = m.heir(p, old)
		err = errors.Join(err, m.rebuild(context.WithoutCancel(ctx), p))
	}
	if len(m.endpoint.Overlays) == 0 {
		err = errors.Join(err, m.retire(p))
	}
	if err != nil {
		return object.Attachment{}, err
	}
	return p.dress(m.at), nil
}

// rewired is the endpoint as it is to be: devices that are there keep their
// names, and others have the first that are free.
func rewired(old, e object.Endpoint) object.Endpoint {
	next := old.Clone()
	next.Overlays, next.DNS = nil, e.Clone().DNS
	used := map[string]bool{cmp.Or(old.Interface, "eth0"): true}
	for _, o := range old.Overlays {
		used[deviceOf(old, o.Network)] = true
	}
	for _, o := range e.Clone().Overlays {
		if was, ok := placeOn(old, o.Network); ok && was.Task == o.Task {
			o = was.Clone()
			o.Interface = deviceOf(old, o.Network)
		} else {
			for i := 0; o.Interface == "" || used[o.Interface]; i++ {
				o.Interface = fmt.Sprintf("eth%d", i)
			}
			used[o.Interface] = true
		}
		next.Overlays = append(next.Overlays, o)
	}
	return next
}

// wayOut refuses a network that is no internal one to a container that has a
// device on internal ones only: it could not get the other.
func wayOut(old, next object.Endpoint, d *desired) error {
	if !old.Internal || len(old.Ports) > 0 {
		return nil
	}
	for _, o := range next.Overlays {
		if _, had := placeOn(old, o.Network); !had && !d.place(o.Network).members.Internal {
			return object.Errorf(errdefs.ErrNotImplemented,
				"container %s is on internal networks only, and is given no way out while it runs; stop it to connect it to network %s",
				short(old.ID), d.place(o.Network).members.Name)
		}
	}
	return nil
}

// nameOf is the endpoint with the names of its networks.
func nameOf(e object.Endpoint, d *desired) object.Endpoint {
	e = e.Clone()
	for i, o := range e.Overlays {
		e.Overlays[i].Name = d.place(o.Network).members.Name
	}
	return e
}

// heir takes the place of m, with another endpoint and all that m has. m follows
// nothing any more.
func (m *member) heir(p *Plane, e object.Endpoint) *member {
	m.mu.Lock()
	h := &member{endpoint: e, at: m.at, up: m.up, plugged: m.plugged, balancer: m.balancer, balanced: m.balanced, joined: m.joined}
	m.up, m.balancer = false, nil
	m.mu.Unlock()
	p.know(h)
	return h
}

// rebuild makes everything as the member's endpoint says.
func (m *member) rebuild(ctx context.Context, p *Plane) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at, err = p.cfg.Attach.Amend(ctx, m.endpoint); err != nil {
		return err
	}
	if err := m.equip(ctx, p); err != nil {
		return err
	}
	m.named = false // by what it now asks for
	if !asks(m.endpoint) {
		p.cfg.DNS.Shut(m.endpoint.ID)
	}
	return m.resolveLocked(ctx, p)
}

// retire forgets a member that is on no network of the swarm any more.
func (m *member) retire(p *Plane) error {
	p.forget(m)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up = false
	if m.balancer == nil {
		return nil
	}
	err := m.balancer.Close()
	m.balancer, m.balanced = nil, nil
	return err
}
