package dataplane

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/net/ingress"
	"skep/net/overlay"
	"skep/store/object"
)

// found is what was seen of a network on this node. It is filled in by
// [Plane.Check] and not changed afterwards.
type found struct {
	frames overlay.State
	// unread is why frames are not known.
	unread error
	// faults are those of containers and the mesh, and whatever else is wrong.
	faults []string
	// balanced: connections are led as the plan says, by as many as balancers.
	balanced  bool
	balancers int
	// attached are the tasks and guests whose containers are connected.
	attached map[string]bool
	asker    asker
	echoes   map[netip.Addr]time.Duration
	// told is what names lead to, refused why they lead nowhere.
	told    map[string][]netip.Addr
	refused map[string]error
}

// Check tells how a network, by its ID or name, is doing on this node: what the
// kernel and the name servers have of it, and who answers. It changes nothing
// and repairs nothing.
func (p *Plane) Check(ctx context.Context, ref string) (object.NodeCheck, error) {
	p.mu.Lock()
	view, d, fault := p.view, p.now, p.fault
	members := slices.SortedFunc(maps.Values(p.members), func(a, b *member) int { return cmp.Compare(a.endpoint.ID, b.endpoint.ID) })
	p.mu.Unlock()
	c := object.NodeCheck{Node: p.cfg.NodeID(), Version: d.version()}
	if fault != nil {
		c.Faults = append(c.Faults, "what the managers say is not followed yet: "+fault.Error())
	}
	n := d.named(ref)
	if n == nil {
		m := named(view, ref)
		if m == nil {
			return c, object.Errorf(errdefs.ErrNotFound, "network %s is not on this node", ref)
		}
		if reason := d.without(m); reason != "" {
			c.Faults = append(c.Faults, reason)
		}
		return c, nil
	}
	f := p.look(ctx, d, n, members)
	p.ask(ctx, n, d.from.parts(n.members), &f)
	r := report(&d.from, n, f)
	c.Asker, c.Endpoints, c.Faults = r.Asker, r.Endpoints, append(c.Faults, r.Faults...)
	return c, nil
}

// named is a network that the node has.
func (d *desired) named(ref string) *place {
	if n := d.place(ref); n != nil || d == nil {
		return n
	}
	for _, n := range byID(d.networks) {
		if n.members.Name == ref {
			return n
		}
	}
	return nil
}

// named is a network that the node knows of.
func named(v *wire.NetworkView, ref string) *wire.NetworkMembers {
	if v == nil {
		return nil
	}
	if m := v.Networks[ref]; m != nil {
		return m
	}
	for _, m := range byID(v.Networks) {
		if m.Name == ref {
			return m
		}
	}
	return nil
}

// without is why the node does not have a network that it knows of; empty if it
// needs none.
func (d *desired) without(m *wire.NetworkMembers) string {
	switch {
	case d == nil || d.from.view == nil || d.from.view.Networks[m.ID] == nil:
		return "the network is not made yet"
	case d.refuses(m.ID):
		return "the network is encrypted, which this node cannot do: " + d.from.self.noESP
	case !d.from.view.Hosts[d.from.self.node].Address.IsValid():
		return "the address of this node's traffic is not known"
	case m.Encrypted:
		return "the keys of the encrypted network are not there yet"
	}
	return ""
}

// unmeshed is why the node does not answer on published ports, though it has the
// network n of the mesh; empty if it does, or if n is another network.
func (d *desired) unmeshed(n *place) string {
	if !n.members.Ingress || d.mesh != nil {
		return ""
	}
	return fmt.Sprintf("this node has none of the routing mesh's %d numbers, and does not answer on published ports", object.LastSlot)
}

// look reads what this node has of a network.
func (p *Plane) look(ctx context.Context, d *desired, n *place, members []*member) found {
	f := found{balanced: true, attached: map[string]bool{}}
	f.frames, f.unread = p.cfg.Overlay.Inspect(ctx, n.members.ID)
	for _, m := range members {
		m.look(ctx, n, &f)
	}
	if n.members.Ingress {
		p.lookAtMesh(ctx, d, n, &f)
	}
	return f
}

// look adds what a container has of the network, if it is on it.
func (m *member) look(ctx context.Context, n *place, f *found) {
	o, ok := placeOn(m.endpoint, n.members.ID)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return // its task says why
	}
	f.attached[o.Task] = true
	if o.Ingress {
		return
	}
	say := func(format string, args ...any) {
		f.balanced = false
		f.faults = append(f.faults, "container "+short(m.endpoint.ID)+": "+fmt.Sprintf(format, args...))
	}
	if f.asker.path == "" {
		f.asker = asker{name: short(m.endpoint.ID), path: m.at.Namespace, sources: bare(o.Addresses), names: m.named}
	}
	if !m.named {
		f.faults = append(f.faults, "container "+short(m.endpoint.ID)+": it has no name server")
	}
	if m.balancer == nil {
		if len(n.services) > 0 {
			say("it has no balancer")
		}
		return
	}
	f.balancers++
	wrong, err := m.balancer.Inspect(ctx)
	switch {
	case err != nil:
		say("%v", err)
	case wrong > 0:
		say("its balancer is not as it should be (%d differences)", wrong)
	case !slices.Contains(m.balanced, n):
		say("its balancer follows another plan")
	}
}

// lookAtMesh adds what the node has of the published ports. There the router
// asks, who is on the network whether containers are or not.
func (p *Plane) lookAtMesh(ctx context.Context, d *desired, n *place, f *found) {
	if reason := d.unmeshed(n); reason != "" {
		f.faults = append(f.faults, reason)
		return
	}
	if d.meshed != n.members.ID {
		return
	}
	f.balancers++
	faults, err := p.cfg.Mesh.Inspect(ctx)
	if err != nil {
		faults = append(faults, err.Error())
	}
	f.balanced = len(faults) == 0
	f.faults = append(append(f.faults, faults...), p.conflicts()...)
	if path, ok := p.cfg.Overlay.Namespace(d.meshed); ok {
		f.asker = asker{name: "the routing mesh", path: path, sources: []netip.Addr{ingress.RouterAddress(d.mesh.Slot)}}
	}
}
