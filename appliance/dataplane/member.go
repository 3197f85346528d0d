package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/dns"
	"skep/net/ingress"
	"skep/store/object"
)

// member is a container that is on networks of the swarm, or waits for them.
type member struct {
	endpoint object.Endpoint // is not changed

	// mu is held while something in the container's namespace is changed.
	mu sync.Mutex
	at object.Attachment // guarded by mu, as all below; what net/attach made
	// up: its namespace and devices are there, and it follows plans.
	up bool
	// plugged: its devices were looked at since this process began.
	plugged bool
	// balancer is nil until there are services that it may use; balanced is what
	// it was last given.
	balancer Balancer
	balanced []*place
	// joined is what its side of the mesh was last made for; nil if it was not.
	joined []wire.MeshPort
	// named: it is answered questions for names.
	named bool
}

// follow leads the addresses of services, and the member's published ports, to
// where d has them.
func (m *member) follow(ctx context.Context, p *Plane, d *desired) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return nil
	}
	return m.followLocked(ctx, p, d)
}

func (m *member) followLocked(ctx context.Context, p *Plane, d *desired) error {
	if missing, _ := d.lacks(m.endpoint); !m.plugged && missing == "" {
		// An earlier process may have ended while it changed them.
		if err := m.plug(ctx, p); err != nil {
			return err
		}
	}
	return errors.Join(m.balance(ctx, p, d), m.join(ctx, p, d))
}

func (m *member) balance(ctx context.Context, p *Plane, d *desired) (err error) {
	var places []*place
	var services []balance.Service
	for _, o := range m.endpoint.Overlays {
		if n := d.place(o.Network); n != nil && !o.Ingress {
			places = append(places, n)
			services = append(services, n.services...)
		}
	}
	if m.balancer != nil && slices.Equal(places, m.balanced) || m.balancer == nil && len(places) == 0 {
		return nil
	}
	if m.balancer == nil {
		if m.balancer, err = p.cfg.Balance(ctx, m.at.Namespace); err != nil {
			m.balancer = nil
			return fmt.Errorf("open balancer: %w", err)
		}
	}
	if err := m.balancer.Set(ctx, services); err != nil {
		m.balanced = nil
		return fmt.Errorf("balance services: %w", err)
	}
	m.balanced = places
	return nil
}

// join makes the member's side of the mesh, if it publishes there.
func (m *member) join(ctx context.Context, p *Plane, d *desired) error {
	o, ok := mesh(m.endpoint)
	n := d.place(o.Network)
	if !ok || n == nil {
		return nil
	}
	e, ok := n.members.Endpoints[o.Task]
	if !ok || m.joined != nil && slices.Equal(m.joined, e.Ports) {
		return nil
	}
	side, err := meshSide(n.members, o, e.Ports)
	if err != nil {
		return err
	}
	side.Namespace, side.Interface = m.at.Namespace, deviceOf(m.endpoint, o.Network)
	if err := p.cfg.Mesh.Join(ctx, side); err != nil {
		return fmt.Errorf("join routing mesh: %w", err)
	}
	m.joined = slices.Concat([]wire.MeshPort{}, e.Ports)
	return nil
}

// mesh is the endpoint's place in the routing mesh.
func mesh(e object.Endpoint) (object.Overlay, bool) {
	i := slices.IndexFunc(e.Overlays, func(o object.Overlay) bool { return o.Ingress })
	if i < 0 {
		return object.Overlay{}, false
	}
	return e.Overlays[i], true
}

// meshSide is what the mesh needs to know of a task.
func meshSide(n *wire.NetworkMembers, o object.Overlay, ports []wire.MeshPort) (ingress.Member, error) {
	for _, s := range n.Subnets {
		for _, a := range o.Addresses {
			if !a.Addr().Is4() || !s.Prefix.Contains(a.Addr()) {
				continue
			}
			side := ingress.Member{Address: a, Subnet: s.Prefix, Gateway: s.Gateway}
			for _, p := range ports {
				side.Ports = append(side.Ports, ingress.MemberPort{Protocol: p.Protocol, Target: p.Target, Index: p.Index})
			}
			return side, nil
		}
	}
	return ingress.Member{}, fmt.Errorf("join routing mesh: none of %v is an address of %s", o.Addresses, n.Name)
}

// resolve has the member's questions answered, if they are not.
func (m *member) resolve(ctx context.Context, p *Plane) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return nil
	}
	return m.resolveLocked(ctx, p)
}

func (m *member) resolveLocked(ctx context.Context, p *Plane) error {
	if m.named || !asks(m.endpoint) {
		return nil
	}
	if err := p.cfg.DNS.Open(ctx, p.client(m.endpoint, m.at.Namespace)); err != nil {
		return fmt.Errorf("answer for names: %w", err)
	}
	m.named = true
	return nil
}

// asks reports whether the endpoint is on a network where others have names.
func asks(e object.Endpoint) bool {
	return slices.ContainsFunc(e.Overlays, func(o object.Overlay) bool { return !o.Ingress })
}

// client is the endpoint as one who asks for names.
func (p *Plane) client(e object.Endpoint, namespace string) dns.Client {
	c := dns.Client{ID: e.ID, Namespace: namespace, Internal: e.Internal, Search: p.cfg.Search()}
	for _, o := range e.Overlays {
		if !o.Ingress {
			c.Networks = append(c.Networks, o.Network)
		}
	}
	if e.DNS != nil {
		if len(e.DNS.Search) > 0 {
			c.Search = e.DNS.Search
		}
		for _, a := range e.DNS.Nameservers {
			c.Upstreams = append(c.Upstreams, netip.AddrPortFrom(a, 53))
		}
	}
	return c
}

func (m *member) check(ctx context.Context) (repaired int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up || m.balancer == nil {
		return 0, nil
	}
	return m.balancer.Check(ctx)
}
