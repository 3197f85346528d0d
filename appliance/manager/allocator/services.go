package allocator

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// noIngress is why a service that publishes ports on all nodes has no tasks
// while there is no network for that.
const noIngress = "service needs ingress network, but no ingress network is present"

// allocateServices gives services what they ask for, the oldest first, and then
// their new tasks.
func (r *round) allocateServices(ids []string) {
	var todo []*object.Service
	for _, id := range unique(ids) {
		svc, ok := r.snap.Services.Get(id)
		if !ok || svc.PendingDelete {
			r.wait(store.Key{Kind: object.KindService, ID: id}, false, false)
			continue
		}
		todo = append(todo, svc)
	}
	slices.SortStableFunc(todo, func(a, b *object.Service) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, old := range todo {
		before := len(r.changes.Update)
		svc, why := r.endpoint(old)
		waits := r.newTasks(svc, why) || why != ""
		r.wait(store.KeyOf(svc), waits, len(r.changes.Update) > before)
	}
}

// endpoint is the service with the ports and virtual addresses that its spec
// asks for, or why it cannot have them all. A service that cannot have its
// ports keeps what it has.
func (r *round) endpoint(svc *object.Service) (_ *object.Service, why string) {
	want := wanted(svc)
	have, next := svc.Endpoint, svc.Endpoint
	portsChange := !allocated(svc, want)
	if portsChange {
		if next.Ports, why = r.assign(svc, want); why != "" {
			return svc, why
		}
		next.Spec = want
	}
	next.VirtualIPs, why = r.virtualIPs(svc, want)
	if portsChange || !slices.Equal(have.VirtualIPs, next.VirtualIPs) {
		svc = svc.Clone().(*object.Service)
		svc.Endpoint = next
		r.changes.Update = append(r.changes.Update, svc)
		if portsChange {
			r.portsInUse().occupy(svc)
		}
	}
	return svc, why
}

// virtualIPs are one address for each network and family, the routing mesh's
// first: those that the service has, and new ones.
func (r *round) virtualIPs(svc *object.Service, want swarm.EndpointSpec) (out []swarm.EndpointVirtualIP, why string) {
	if want.Mode == swarm.ResolutionModeDNSRR {
		return nil, ""
	}
	ids, why := r.networksOf(svc.Spec.TaskTemplate.Networks, want.Ports)
	for _, id := range ids {
		s, missing := r.site(id)
		if missing != "" {
			out, why = append(out, virtualIPsOn(svc, id)...), missing
			continue
		}
		for _, f := range s.families {
			v, full := r.virtualIP(svc, s, f)
			if full != "" {
				why = full
				continue
			}
			out = append(out, v)
		}
	}
	for _, v := range svc.Endpoint.VirtualIPs {
		// While the service moves to other networks, it is still to be found
		// on those that its old tasks are on.
		if !slices.Contains(ids, v.NetworkID) && object.OnNetwork(r.snap.Tasks.By(store.ByService, svc.ID), v.NetworkID) {
			out = append(out, v)
		}
	}
	return out, why
}

// virtualIP is the service's address of one family on a network.
func (r *round) virtualIP(svc *object.Service, s *site, f *family) (swarm.EndpointVirtualIP, string) {
	for _, v := range virtualIPsOn(svc, s.ID) {
		if f.has(v.Addr.Addr()) {
			return v, ""
		}
	}
	p, why := r.take(s, f)
	return swarm.EndpointVirtualIP{NetworkID: s.ID, Addr: p}, why
}

func virtualIPsOn(svc *object.Service, network string) (out []swarm.EndpointVirtualIP) {
	for _, v := range svc.Endpoint.VirtualIPs {
		if v.NetworkID == network {
			out = append(out, v)
		}
	}
	return out
}

// networksOf are the networks of the swarm that are asked for; that of the
// routing mesh, if ports are published there, is the first.
func (r *round) networksOf(targets []swarm.NetworkAttachmentConfig, ports []swarm.PortConfig) (ids []string, why string) {
	if publishes(ports) {
		if id := r.ingress(); id != "" {
			ids = append(ids, id)
		} else {
			why = noIngress
		}
	}
	for _, t := range targets {
		if !object.Predefined(t.Target) && !slices.Contains(ids, t.Target) {
			ids = append(ids, t.Target)
		}
	}
	return ids, why
}

// publishes reports whether one of the ports is published on all nodes.
func publishes(ports []swarm.PortConfig) bool {
	return slices.ContainsFunc(ports, func(p swarm.PortConfig) bool { return p.PublishMode != swarm.PortConfigPublishModeHost })
}

// ingress is the network of the routing mesh, empty if there is none.
func (r *round) ingress() string {
	if r.mesh == nil {
		r.mesh = new(string)
		for n := range r.snap.Networks.All() {
			if n.Spec.Ingress && !n.PendingDelete {
				*r.mesh = n.ID
			}
		}
	}
	return *r.mesh
}
