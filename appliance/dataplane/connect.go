package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"skep/net/overlay"
	"skep/store/object"
)

// patience is how long a container waits for what the managers say of its
// networks, which usually comes with its task.
const patience = 20 * time.Second

// Connect makes an endpoint: its place on the node's own network, then those on
// the swarm's, then what leads to services, then names. If a step fails nothing
// is left. It waits for networks that the node does not know yet; the error
// that says so wraps [object.ErrTemporary]. That of a network which the node
// can never have wraps [object.ErrUnfit].
//
// Invariant: an endpoint follows every plan that is not older than the one that
// it was made by. It is known before it looks for the current plan, and a plan
// is current before those who are known follow it.
func (p *Plane) Connect(ctx context.Context, e object.Endpoint) (object.Attachment, error) {
	done, err := p.begin(ctx, e.ID)
	if err != nil {
		return object.Attachment{}, err
	}
	defer done()
	if m := p.member(e.ID); m != nil {
		if at, ok := m.serves(p, recalled(e, m.endpoint)); ok {
			return p.dress(at), nil
		}
		if err = p.disconnect(ctx, m); err != nil {
			return object.Attachment{}, err
		}
	}
	if len(e.Overlays) == 0 {
		return p.cfg.Attach.Connect(ctx, e)
	}
	waiting := &member{endpoint: e.Clone()}
	p.know(waiting)
	d, err := p.await(ctx, e)
	if err != nil {
		p.forget(waiting)
		return object.Attachment{}, err
	}
	m := &member{endpoint: completed(e, d)}
	p.know(m)
	if err := m.build(ctx, p); err != nil {
		return object.Attachment{}, errors.Join(err, p.disconnect(context.WithoutCancel(ctx), m))
	}
	return p.dress(m.at), nil
}

// serves is what the member got, if it is as it is asked for.
func (m *member) serves(p *Plane, e object.Endpoint) (object.Attachment, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at, m.up && p.cfg.Attach.Serves(e)
}

// completed is the endpoint with what the managers say of its networks.
func completed(e object.Endpoint, d *desired) object.Endpoint {
	e = e.Clone()
	inside := asks(e)
	for i, o := range e.Overlays {
		n := d.place(o.Network).members
		e.Overlays[i].Name = n.Name
		inside = inside && (o.Ingress || n.Internal)
	}
	e.Internal = e.Internal || inside
	return e
}

// recalled is the endpoint with what was completed when it was made, so that
// it can be compared.
func recalled(e, made object.Endpoint) object.Endpoint {
	e = e.Clone()
	e.Internal = e.Internal || made.Internal
	for i, o := range e.Overlays {
		if i < len(made.Overlays) && made.Overlays[i].Network == o.Network {
			e.Overlays[i].Name = made.Overlays[i].Name
		}
	}
	return e
}

// await waits until the networks of an endpoint can be sent on, by the plan
// that it returns.
func (p *Plane) await(ctx context.Context, e object.Endpoint) (*desired, error) {
	if missing, err := p.current().lacks(e); err == nil && missing != "" {
		p.wake() // it may only be made because it is waited for
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		p.mu.Lock()
		now, changed := p.now, p.changed
		p.mu.Unlock()
		missing, err := now.lacks(e)
		if err != nil || missing == "" {
			return now, err
		}
		select {
		case <-changed:
		case <-enough.C:
			return nil, fmt.Errorf("network %s is not known on this node yet (%w)", missing, object.ErrTemporary)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lacks names a network that the endpoint needs and that is not made, if there
// is one. An error says that there is no point in waiting.
func (d *desired) lacks(e object.Endpoint) (missing string, err error) {
	for _, o := range e.Overlays {
		name := o.Name
		if name == "" {
			name = o.Network
		}
		n := d.place(o.Network)
		switch {
		case n == nil && d.refuses(o.Network):
			return "", object.Errorf(errors.Join(errdefs.ErrFailedPrecondition, object.ErrUnfit),
				"network %s is encrypted, which this node cannot do: %s", d.from.view.Networks[o.Network].Name, d.from.self.noESP)
		case n == nil:
			return name, nil
		}
		// The numbers of its ports are in what the managers say of it.
		if _, ok := n.members.Endpoints[o.Task]; o.Ingress && !ok {
			return name, nil
		}
	}
	return "", nil
}

// refuses reports whether the node never makes a network that it knows.
func (d *desired) refuses(id string) bool {
	if d == nil || d.from.view == nil {
		return false
	}
	m := d.from.view.Networks[id]
	return m != nil && m.Encrypted && d.from.self.noESP != ""
}

// build makes everything of the member. If a step fails, what was made is there.
func (m *member) build(ctx context.Context, p *Plane) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at, err = p.cfg.Attach.Connect(ctx, m.endpoint); err != nil {
		return err
	}
	if err := m.equip(ctx, p); err != nil {
		return err
	}
	if err := m.resolveLocked(ctx, p); err != nil {
		return err
	}
	m.up = true
	return nil
}

// equip gives the member its devices, and what leads from it by the current plan.
// It is locked, and attached.
func (m *member) equip(ctx context.Context, p *Plane) error {
	d := p.current() // before there are devices: a newer plan follows by itself
	if err := m.plug(ctx, p); err != nil {
		return err
	}
	return m.followLocked(ctx, p, d)
}

// plug puts the member's devices into its namespace, and takes out those of
// networks that it is not on any more.
func (m *member) plug(ctx context.Context, p *Plane) error {
	var others []string
	for _, at := range p.cfg.Overlay.Attached(m.endpoint.ID) {
		if _, ok := placeOn(m.endpoint, at.Network); !ok {
			others = append(others, at.Network)
		}
	}
	if len(others) > 0 {
		if err := p.cfg.Overlay.Detach(ctx, m.endpoint.ID, others...); err != nil {
			return err
		}
	}
	for _, o := range m.endpoint.Overlays {
		addrs := bare(o.Addresses)
		if len(addrs) == 0 {
			return fmt.Errorf("connect to network %s: no address was allocated", o.Name)
		}
		err := p.cfg.Overlay.Attach(ctx, overlay.Attachment{
			ID: m.endpoint.ID, Network: o.Network, Namespace: m.at.Namespace, Interface: deviceOf(m.endpoint, o.Network),
			Addresses: o.Addresses, MAC: overlay.MAC(addrs),
		})
		if err != nil {
			return fmt.Errorf("connect to network %s: %w", o.Name, err)
		}
	}
	m.plugged = true
	return nil
}

// placeOn is the endpoint's place on a network.
func placeOn(e object.Endpoint, network string) (object.Overlay, bool) {
	i := slices.IndexFunc(e.Overlays, func(o object.Overlay) bool { return o.Network == network })
	if i < 0 {
		return object.Overlay{}, false
	}
	return e.Overlays[i], true
}

func bare(prefixes []netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for _, p := range prefixes {
		list = append(list, p.Addr())
	}
	return list
}
