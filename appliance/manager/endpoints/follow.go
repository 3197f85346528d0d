package endpoints

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// overlay is a network that there is, or that something is on.
func (b *Board) overlay(id string) *overlay {
	o := b.networks[id]
	if o == nil {
		o = &overlay{feed: newFeed(), born: b.version, nodes: map[string]bool{}}
		b.networks[id] = o
	}
	return o
}

// tidy forgets a network that there is not and that nothing is on.
func (b *Board) tidy(id string) {
	if o := b.networks[id]; o != nil && !o.exists && len(o.facts) == o.gone {
		delete(b.networks, id)
	}
}

// network takes in one network.
func (r *round) network(id string) {
	n, exists := r.snap.Networks.Get(id)
	o := r.overlay(id)
	known, item := false, wire.NetworkItem{}
	if exists && n.VNI != 0 {
		var err error
		if item, err = (wire.NetworkItem{Network: new(networkOf(n))}).Encoded(); err != nil {
			r.refused(err)
		}
		known = err == nil
	}
	mesh := exists && n.Spec.Ingress
	if mesh {
		r.ingress[id] = true
	}
	if known != o.known || known && !item.Same(o.item) || mesh != o.mesh {
		o.known, o.item, o.changed = known, item, r.version
		r.touch(id)
	}
	if !mesh {
		delete(r.ingress, id)
	}
	if exists != o.exists || mesh != o.mesh {
		o.exists, o.mesh = exists, mesh
		r.revise(o)
	}
	r.tidy(id)
}

// revise looks again at what depends on whether there is a network, and whether
// it is the routing mesh. It is made and it goes when nothing is on it.
func (r *round) revise(o *overlay) {
	for s := range r.snap.Services.All() {
		r.dirtyServices[s.ID] = true
	}
	for k := range o.facts {
		switch k.kind {
		case kindService:
			r.dirtyServices[k.id] = true
		case kindEndpoint:
			r.dirtyMembers[store.Key{Kind: object.KindTask, ID: k.id}] = true
			r.dirtyMembers[store.Key{Kind: object.KindGuest, ID: k.id}] = true
		default:
		}
	}
}

// node takes in one node, and what is on it if it went down or came up.
func (r *round) node(id string) {
	k := factKey{kindHost, id}
	n, exists := r.snap.Nodes.Get(id)
	if !exists {
		r.news.All = r.hosts.drop(k, gone(wire.NetworkItem{Host: &wire.Host{ID: id}}), r.version) || r.news.All
	} else if item, err := (wire.NetworkItem{Host: new(hostOf(n))}).Encoded(); err != nil {
		r.refused(err)
	} else {
		r.news.All = r.hosts.set(k, item, r.version) || r.news.All
	}
	now := down(r.snap, id)
	if now != r.up[id] {
		return
	}
	if now {
		delete(r.up, id)
		r.news.Lost = append(r.news.Lost, id)
	} else {
		r.up[id] = true
	}
	for t := range r.snap.Tasks.By(store.ByNode, id) {
		r.dirtyMembers[store.KeyOf(t)] = true
	}
	for g := range r.snap.Guests.By(store.ByNode, id) {
		r.dirtyMembers[store.KeyOf(g)] = true
	}
}

// gone is the item which says that what has its key is gone.
func gone(i wire.NetworkItem) wire.NetworkItem {
	i.Gone = true
	i, err := i.Encoded()
	if err != nil {
		panic(err) // the key was told before
	}
	return i
}

// service takes in one service, on all networks where it is or was.
func (r *round) service(id string) {
	on := map[string]bool{}
	if svc, ok := r.snap.Services.Get(id); ok {
		on = networksOf(r.snap, svc, r.ingress)
	}
	for network := range r.uses[id] {
		on[network] = true
	}
	for network := range r.services[id] {
		if !on[network] {
			r.tell(network, factKey{kindService, id}, nil)
			delete(r.services[id], network)
		}
	}
	for network := range on {
		if r.tell(network, factKey{kindService, id}, &wire.NetworkItem{Service: new(serviceOn(r.snap, id, network))}) {
			if r.services[id] == nil {
				r.services[id] = map[string]bool{}
			}
			r.services[id][network] = true
		}
	}
	if len(r.services[id]) == 0 {
		delete(r.services, id)
	}
}

// tell notes a fact on a network, nil if it is gone, and says whether it is told.
func (r *round) tell(network string, k factKey, item *wire.NetworkItem) bool {
	o := r.overlay(network)
	if item != nil {
		i, err := item.Encoded()
		if err == nil {
			if o.set(k, i, r.version) {
				r.touch(network)
			}
			return true
		}
		r.refused(err)
	}
	last := wire.NetworkItem{Endpoint: &wire.Endpoint{Network: network, ID: k.id}}
	if k.kind == kindService {
		last = wire.NetworkItem{Service: &wire.NetworkService{Network: network, ID: k.id}}
	}
	if o.has(k) {
		o.drop(k, gone(last), r.version)
		r.touch(network)
	}
	r.tidy(network)
	return false
}

// member takes in one task or guest.
func (r *round) member(k store.Key) {
	var want []wire.Endpoint
	stopping := false
	switch k.Kind {
	case object.KindTask:
		if t, ok := r.snap.Tasks.Get(k.ID); ok {
			want = taskEndpoints(r.snap, t)
			stopping = stops(t) && t.Status.State == swarm.TaskStateRunning
		}
	default:
		if g, ok := r.snap.Guests.Get(k.ID); ok {
			want = guestEndpoints(r.snap, g)
		}
	}
	was := r.members[k]
	if was == nil {
		was = &member{}
	}
	now := r.place(k.ID, want)
	for _, network := range was.networks {
		if !slices.Contains(now.networks, network) {
			r.tell(network, factKey{kindEndpoint, k.ID}, nil)
		}
	}
	r.count(now, +1) // first, so that what stays is never counted as gone
	r.count(was, -1)
	now.since(was, r.version)
	now.stopping = stopping
	if r.members[k] = now; len(now.networks) == 0 {
		delete(r.members, k)
	} else if stopping && (r.first || !was.stopping && was.active > 0) {
		r.news.Stops = append(r.news.Stops, Stop{Task: k.ID, Node: now.node, Networks: now.networks, Active: now.active, Drained: now.drained})
	}
}

// since fills in from when a member is as it is, which was another before. What
// was active may be led to until it is known that it drains.
func (m *member) since(was *member, version uint64) {
	switch {
	case m.state == wire.EndpointPrepared:
		return
	case was.active > 0:
		m.active = was.active
	case m.state == wire.EndpointActive:
		m.active = version
	}
	if m.state == wire.EndpointDraining {
		m.drained = version
		if was.state == wire.EndpointDraining {
			m.drained = was.drained
		}
	}
}

// place tells of endpoints, and is the member that has those that can be told.
func (r *round) place(id string, want []wire.Endpoint) *member {
	now := new(member)
	for i := range want {
		e := &want[i]
		if r.tell(e.Network, factKey{kindEndpoint, id}, &wire.NetworkItem{Endpoint: e}) {
			now.node, now.service, now.state = e.Node, e.Service, e.State
			now.networks = append(now.networks, e.Network)
		}
	}
	return now
}

// count takes a member into account n more times.
func (r *round) count(m *member, n int) {
	for _, network := range m.networks {
		if m.service != "" && r.uses.add(m.service, network, n) {
			r.dirtyServices[m.service] = true
		}
		if r.on.add(m.node, network, n) {
			r.news.Nodes[m.node] = true
			o := r.overlay(network)
			if n > 0 {
				o.nodes[m.node] = true
			} else {
				delete(o.nodes, m.node)
			}
			r.tidy(network)
		}
	}
}
