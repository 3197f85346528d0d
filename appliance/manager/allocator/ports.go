package allocator

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// The range from which ports are chosen.
const (
	firstDynamic = 30000
	lastDynamic  = 32767
)

type port struct {
	protocol network.IPProtocol
	number   uint32
}

// ports are those that services publish, by mode. A port that is published on
// all nodes (ingress) belongs to one service. One that the user leaves open is
// chosen and stays with the service as long as it asks for it. Ports in host
// mode are the node's to choose.
type ports struct{ ingress, host map[port]*object.Service }

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

// assign chooses the ports of a service, or says why it cannot.
func (r *round) assign(svc *object.Service, want swarm.EndpointSpec) (ports []swarm.PortConfig, why string) {
	in := r.portsInUse()
	ports = slices.Clone(want.Ports)
	mine := map[port]bool{}
	for _, p := range ports {
		if p.PublishedPort == 0 {
			continue
		}
		k := port{p.Protocol, p.PublishedPort}
		if o := in.ingress[k]; o != nil && o.ID != svc.ID {
			return nil, taken(p.PublishedPort, o, "an ingress port")
		}
		if p.PublishMode == swarm.PortConfigPublishModeHost {
			continue
		}
		if o := in.host[k]; o != nil && o.ID != svc.ID {
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
			o := in.ingress[k]
			return !mine[k] && (o == nil || o.ID == svc.ID) && in.host[k] == nil
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

// portsInUse gathers the ports of all services at first use.
func (r *round) portsInUse() *ports {
	if r.ports == nil {
		r.ports = usedPorts(r.snap)
	}
	return r.ports
}

func usedPorts(snap *store.Snapshot) *ports {
	p := &ports{ingress: map[port]*object.Service{}, host: map[port]*object.Service{}}
	for svc := range snap.Services.All() {
		p.occupy(svc)
	}
	return p
}

func (in *ports) occupy(svc *object.Service) {
	for _, p := range svc.Endpoint.Ports {
		switch k := (port{p.Protocol, p.PublishedPort}); {
		case p.PublishedPort == 0:
		case p.PublishMode == swarm.PortConfigPublishModeHost:
			in.host[k] = svc
		default:
			in.ingress[k] = svc
		}
	}
}
