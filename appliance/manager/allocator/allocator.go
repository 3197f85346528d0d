// Package allocator gives services their published ports and lets new tasks
// pass on to the scheduler.
//
// A port that is published on all nodes (ingress) belongs to one service. One
// that the user leaves open is chosen from 30000 to 32767 and stays with the
// service as long as it asks for it. A service whose port is taken gets none,
// and its tasks stay new and say why, until the port is free. Ports in host
// mode are the node's to choose.
//
// What is allocated is what the services in the store say: there is nothing to
// leak and nothing to rebuild.
package allocator

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

// The range from which ports are chosen.
const (
	firstDynamic = 30000
	lastDynamic  = 32767
)

// Run allocates until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error { return loop.Follow(ctx, s, Plan) }

// Plan is the allocator's [loop.Plan].
func Plan(prev *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
	r := &round{snap: ch.Snapshot, now: now}
	ids := loop.Services(prev, ch)
	if slices.ContainsFunc(ch.Keys, func(k store.Key) bool { return k.Kind == object.KindService }) {
		// A port may be free that others wait for.
		for svc := range ch.Snapshot.Services.All() {
			if !allocated(svc, wanted(svc)) {
				ids = append(ids, svc.ID)
			}
		}
	}
	slices.Sort(ids)
	var services []*object.Service
	for _, id := range slices.Compact(ids) {
		if svc, ok := ch.Snapshot.Services.Get(id); ok && !svc.PendingDelete {
			services = append(services, svc)
		}
	}
	slices.SortStableFunc(services, func(a, b *object.Service) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, svc := range services { // the oldest has the first choice
		r.service(svc)
	}
	return r.changes, time.Time{}
}

type port struct {
	protocol network.IPProtocol
	number   uint32
}

type round struct {
	snap    *store.Snapshot
	now     time.Time
	changes loop.Changes
	ingress map[port]*object.Service // made at first use, as is host
	host    map[port]*object.Service
}

// wanted is the endpoint that the service's spec asks for.
func wanted(svc *object.Service) swarm.EndpointSpec {
	e := svc.Spec.EndpointSpec
	if e == nil {
		return swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
	}
	out := swarm.EndpointSpec{Mode: e.Mode, Ports: slices.Clone(e.Ports)}
	if out.Mode == "" {
		out.Mode = swarm.ResolutionModeVIP
	}
	for i := range out.Ports {
		if out.Ports[i].Protocol == "" {
			out.Ports[i].Protocol = network.TCP
		}
		if out.Ports[i].PublishMode == "" {
			out.Ports[i].PublishMode = swarm.PortConfigPublishModeIngress
		}
	}
	return out
}

func allocated(svc *object.Service, want swarm.EndpointSpec) bool {
	have := svc.Endpoint.Spec
	return have.Mode == want.Mode && len(svc.Endpoint.Ports) == len(want.Ports) &&
		(len(have.Ports) == 0 && len(want.Ports) == 0 || reflect.DeepEqual(have.Ports, want.Ports))
}

func (r *round) service(svc *object.Service) {
	want, reason := wanted(svc), ""
	if !allocated(svc, want) {
		ports, why := r.assign(svc, want)
		if why == "" {
			svc = svc.Clone().(*object.Service)
			svc.Endpoint = swarm.Endpoint{Spec: want, Ports: ports, VirtualIPs: svc.Endpoint.VirtualIPs}
			r.changes.Update = append(r.changes.Update, svc)
			r.occupy(svc)
		}
		reason = why
	}
	for t := range r.snap.Tasks.By(store.ByService, svc.ID) {
		if t.Status.State != swarm.TaskStateNew || object.Rank(t.DesiredState) > object.Rank(swarm.TaskStateRunning) ||
			(reason != "" && t.Status.Err == reason) {
			continue
		}
		t = t.Clone().(*object.Task)
		t.Status.Timestamp, t.Status.Err = r.now, reason
		if reason == "" {
			t.Status.State, t.Status.Message = swarm.TaskStatePending, "pending task scheduling"
			t.Ports = slices.Clone(svc.Endpoint.Ports)
		}
		r.changes.Update = append(r.changes.Update, t)
	}
}

// assign chooses the ports of a service, or says why it cannot.
func (r *round) assign(svc *object.Service, want swarm.EndpointSpec) (ports []swarm.PortConfig, why string) {
	r.look()
	ports = slices.Clone(want.Ports)
	mine := map[port]bool{}
	for _, p := range ports {
		if p.PublishedPort == 0 {
			continue
		}
		k := port{p.Protocol, p.PublishedPort}
		if o := r.ingress[k]; o != nil && o.ID != svc.ID {
			return nil, taken(p.PublishedPort, o, "an ingress port")
		}
		if p.PublishMode == swarm.PortConfigPublishModeHost {
			continue
		}
		if o := r.host[k]; o != nil && o.ID != svc.ID {
			return nil, taken(p.PublishedPort, o, "a host-published port")
		}
		mine[k] = true
	}
	for i := range ports {
		p := &ports[i]
		if p.PublishedPort != 0 || p.PublishMode == swarm.PortConfigPublishModeHost {
			continue
		}
		free := func(n uint32) bool {
			k := port{p.Protocol, n}
			o := r.ingress[k]
			return !mine[k] && (o == nil || o.ID == svc.ID) && r.host[k] == nil
		}
		if p.PublishedPort = choose(svc, *p, free); p.PublishedPort == 0 {
			return nil, fmt.Sprintf("no port from %d to %d is free", firstDynamic, lastDynamic)
		}
		mine[port{p.Protocol, p.PublishedPort}] = true
	}
	return ports, ""
}

func taken(n uint32, by *object.Service, as string) string {
	return fmt.Sprintf("port '%d' is already in use by service '%s' (%s) as %s", n, by.Spec.Name, by.ID, as)
}

// choose keeps the port that the service had, or takes the lowest free one.
func choose(svc *object.Service, want swarm.PortConfig, free func(uint32) bool) uint32 {
	for i, had := range svc.Endpoint.Ports {
		open := i < len(svc.Endpoint.Spec.Ports) && svc.Endpoint.Spec.Ports[i].PublishedPort == 0
		if open && had.TargetPort == want.TargetPort && had.Protocol == want.Protocol &&
			had.PublishMode == want.PublishMode && free(had.PublishedPort) {
			return had.PublishedPort
		}
	}
	for n := uint32(firstDynamic); n <= lastDynamic; n++ {
		if free(n) {
			return n
		}
	}
	return 0
}

// look gathers the ports that are in use.
func (r *round) look() {
	if r.ingress != nil {
		return
	}
	r.ingress, r.host = map[port]*object.Service{}, map[port]*object.Service{}
	for svc := range r.snap.Services.All() {
		r.occupy(svc)
	}
}

func (r *round) occupy(svc *object.Service) {
	for _, p := range svc.Endpoint.Ports {
		switch k := (port{p.Protocol, p.PublishedPort}); {
		case p.PublishedPort == 0:
		case p.PublishMode == swarm.PortConfigPublishModeHost:
			r.host[k] = svc
		default:
			r.ingress[k] = svc
		}
	}
}
