package endpoints

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// stops reports whether a task is to end: one of a job that is to run until it is
// complete is not.
func stops(t *object.Task) bool {
	return object.Rank(t.DesiredState) >= object.Rank(swarm.TaskStateShutdown)
}

// state is how far a task takes part in its networks, empty if it does not.
func state(t *object.Task, down bool) wire.EndpointState {
	switch {
	case t.NodeID == "" || object.Rank(t.Status.State) < object.Rank(swarm.TaskStateAssigned) || object.Ended(t.Status.State):
		return ""
	case stops(t) || down || t.Leaving:
		return wire.EndpointDraining
	case t.Status.State == swarm.TaskStateRunning:
		return wire.EndpointActive
	default:
		return wire.EndpointPrepared
	}
}

// down reports whether nothing is to be led to a node.
func down(snap *store.Snapshot, node string) bool {
	n, ok := snap.Nodes.Get(node)
	return !ok || n.Status.State == swarm.NodeStateDown
}

// taskEndpoints are a task's places on its networks.
func taskEndpoints(snap *store.Snapshot, t *object.Task) (out []wire.Endpoint) {
	if len(t.Networks) == 0 {
		return nil
	}
	s := state(t, down(snap, t.NodeID))
	if s == "" {
		return nil
	}
	names := taskNames(snap, t)
	for _, n := range t.Networks {
		e := wire.Endpoint{
			Network: n.ID, ID: t.ID, Service: t.ServiceID, Node: t.NodeID, State: s,
			Addresses: addresses(n.Addresses), Names: names, Aliases: n.Aliases,
		}
		if isIngress(snap, n.ID) {
			e.Ports = meshPorts(t.Ports)
		}
		out = append(out, e)
	}
	return out
}

// guestEndpoints is a guest's place on its network, if it has one yet.
func guestEndpoints(snap *store.Snapshot, g *object.Guest) []wire.Endpoint {
	if len(g.Network.Addresses) == 0 || g.NodeID == "" {
		return nil
	}
	s := wire.EndpointActive
	if down(snap, g.NodeID) {
		s = wire.EndpointDraining
	}
	names := shortID(g.ContainerID)
	if g.Name != "" {
		names = append(names, g.Name)
	}
	return []wire.Endpoint{{
		Network: g.Network.ID, ID: g.ID, Node: g.NodeID, State: s,
		Addresses: addresses(g.Network.Addresses), Names: names, Aliases: g.Network.Aliases,
	}}
}

// taskNames are what a task's container is called: service.slot.task, or
// service.node.task for a global service, and by its own short ID.
func taskNames(snap *store.Snapshot, t *object.Task) (names []string) {
	if rev := snap.Revision(t.ServiceID, t.SpecVersion); rev != nil {
		slot := t.NodeID
		if t.Slot != 0 {
			slot = strconv.Itoa(t.Slot)
		}
		names = append(names, strings.Join([]string{rev.Service.Name, slot, t.ID}, "."))
	}
	if c := t.Status.ContainerStatus; c != nil {
		names = append(names, shortID(c.ContainerID)...)
	}
	return names
}

// shortID is how a container is called for short. It is the node's word, and
// counts only if it is what it should be.
func shortID(container string) []string {
	const short = 12
	if len(container) < short || strings.Trim(container[:short], "0123456789abcdef") != "" {
		return nil
	}
	return []string{container[:short]}
}

func addresses(in []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(in))
	for i, p := range in {
		out[i] = p.Addr()
	}
	return out
}

// meshPorts are those of the ports that are published on all nodes.
func meshPorts(ports []swarm.PortConfig) (out []wire.MeshPort) {
	index := 0
	for _, p := range ports {
		if !object.InMesh(p) {
			continue
		}
		m := wire.MeshPort{Protocol: p.Protocol, Published: uint16(p.PublishedPort), Target: uint16(p.TargetPort), Index: index}
		index++
		if m.Published != 0 && uint32(m.Published) == p.PublishedPort && uint32(m.Target) == p.TargetPort {
			out = append(out, m)
		}
	}
	return out
}

func isIngress(snap *store.Snapshot, network string) bool {
	n, ok := snap.Networks.Get(network)
	return ok && n.Spec.Ingress
}

// networkOf is a network as nodes know it. Until it has a VNI no node would.
func networkOf(n *object.Network) wire.Network {
	out := wire.Network{
		ID: n.ID, Name: n.Spec.Name, VNI: n.VNI,
		Internal: n.Spec.Internal, Ingress: n.Spec.Ingress, Encrypted: n.Encrypted(),
	}
	if text, ok := n.Option(object.OptionMTU); ok {
		out.MTU, _ = strconv.Atoi(text) // the API has looked at it
	}
	if n.IPAMOptions != nil {
		for _, c := range n.IPAMOptions.Configs {
			out.Subnets = append(out.Subnets, wire.Subnet{Prefix: c.Subnet, Gateway: c.Gateway})
		}
	}
	return out
}

// serviceOn is a service as it is on a network: one that was deleted has no more
// than a name there.
func serviceOn(snap *store.Snapshot, id, network string) wire.NetworkService {
	out := wire.NetworkService{Network: network, ID: id}
	svc, ok := snap.Services.Get(id)
	if !ok {
		for rev := range snap.Revisions.By(store.ByService, id) {
			out.Name = rev.Service.Name
		}
		return out
	}
	out.Name = svc.Spec.Name
	for _, v := range svc.Endpoint.VirtualIPs {
		if v.NetworkID == network {
			out.VIPs = append(out.VIPs, v.Addr.Addr())
		}
	}
	if isIngress(snap, network) {
		out.Published = meshPorts(svc.Endpoint.Ports)
		out.Source = object.Source(svc.Spec.Labels)
	}
	return out
}

// networksOf are the networks that a service says it is on, of those that there
// are; ingress are those of the routing mesh.
func networksOf(snap *store.Snapshot, svc *object.Service, ingress map[string]bool) map[string]bool {
	on := map[string]bool{}
	add := func(id string) {
		if _, ok := snap.Networks.Get(id); ok {
			on[id] = true
		}
	}
	for _, v := range svc.Endpoint.VirtualIPs {
		add(v.NetworkID)
	}
	for _, n := range svc.Spec.TaskTemplate.Networks {
		add(n.Target)
	}
	if len(meshPorts(svc.Endpoint.Ports)) > 0 {
		for id := range ingress {
			add(id)
		}
	}
	return on
}

// hostOf is a node as others know it.
func hostOf(n *object.Node) wire.Host {
	return wire.Host{ID: n.ID, Address: n.DataAddr(), Slot: n.Slot, Down: n.Status.State == swarm.NodeStateDown}
}
