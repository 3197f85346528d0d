package engine

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// shortID is as much of a node's ID as clients are shown of a peer's.
const shortID = 12

// showNetwork is a network of the swarm among others.
func showNetwork(n *object.Network) network.Network {
	shown := network.Network{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: "swarm", Driver: "overlay",
		EnableIPv4: true, EnableIPv6: n.Spec.IPv6Enabled,
		Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
		Options: n.DriverState.Options, Labels: n.Spec.Labels,
		IPAM: network.IPAM{Driver: "default"},
	}
	options := n.IPAMOptions
	if options == nil { // nothing is allocated yet
		options = n.Spec.IPAMOptions
		if d := n.Spec.DriverConfiguration; d != nil {
			shown.Options = d.Options
		}
	}
	if options != nil {
		for _, c := range options.Configs {
			shown.IPAM.Config = append(shown.IPAM.Config, network.IPAMConfig{
				Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway, AuxAddress: auxiliaryOf(n, c.Subnet),
			})
		}
	}
	return shown
}

func auxiliaryOf(n *object.Network, subnet netip.Prefix) map[string]netip.Addr {
	var out map[string]netip.Addr
	for name, addr := range n.Auxiliary {
		if subnet.Contains(addr) {
			if out == nil {
				out = map[string]netip.Addr{}
			}
			out[name] = addr
		}
	}
	return out
}

// showSwarmNetwork is a network of the swarm inside of a task. What is gone has
// nothing but an ID.
func showSwarmNetwork(s *store.Snapshot, id string) swarm.Network {
	n, ok := s.Networks.Get(id)
	if !ok {
		return swarm.Network{ID: id}
	}
	shown := n.Network
	shown.Spec.Labels = labels(shown.Spec.Labels)
	return shown
}

// showAttachments are a task's places on networks, the routing mesh's first.
func showAttachments(s *store.Snapshot, t *object.Task) []swarm.NetworkAttachment {
	var out []swarm.NetworkAttachment
	for _, at := range t.Networks {
		shown := swarm.NetworkAttachment{Network: showSwarmNetwork(s, at.ID), Addresses: at.Addresses}
		if shown.Network.Spec.Ingress {
			out = slices.Insert(out, 0, shown)
			continue
		}
		out = append(out, shown)
	}
	return out
}

// describeNetwork adds who is on a network: the containers of this node, and
// the nodes.
func describeNetwork(s *store.Snapshot, shown *network.Inspect, n *object.Network, self string) {
	shown.Containers = map[string]network.EndpointResource{}
	nodes := map[string]bool{}
	for t := range s.Tasks.All() {
		at, ok := placeOn(t.Networks, n.ID)
		if !ok || object.Over(t) || t.NodeID == "" {
			continue
		}
		nodes[t.NodeID] = true
		if c := t.Status.ContainerStatus; t.NodeID == self && c != nil && c.ContainerID != "" {
			shown.Containers[c.ContainerID] = networkEndpoint(taskName(s, t), t.ID, at)
		}
	}
	for g := range s.Guests.All() {
		if g.Network.ID != n.ID || len(g.Network.Addresses) == 0 {
			continue
		}
		nodes[g.NodeID] = true
		if g.NodeID == self {
			shown.Containers[g.ContainerID] = networkEndpoint(g.Name, g.ID, g.Network)
		}
	}
	if n.Spec.Ingress {
		for node := range s.Nodes.All() {
			if node.Slot != 0 && node.Status.State != swarm.NodeStateDown {
				nodes[node.ID] = true
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if addr := dataAddr(s, id); addr.IsValid() {
			shown.Peers = append(shown.Peers, network.PeerInfo{Name: id[:min(shortID, len(id))], IP: addr})
		}
	}
}

func placeOn(networks []object.TaskNetwork, id string) (object.TaskNetwork, bool) {
	i := slices.IndexFunc(networks, func(n object.TaskNetwork) bool { return n.ID == id })
	if i < 0 {
		return object.TaskNetwork{}, false
	}
	return networks[i], true
}

func networkEndpoint(name, id string, at object.TaskNetwork) network.EndpointResource {
	r := network.EndpointResource{Name: name, EndpointID: object.OverlayEndpointID(id, at.ID)}
	var addrs []netip.Addr
	for _, p := range at.Addresses {
		if addrs = append(addrs, p.Addr()); p.Addr().Is4() {
			r.IPv4Address = p
		} else {
			r.IPv6Address = p
		}
	}
	r.MacAddress = network.HardwareAddr(object.OverlayMAC(addrs))
	return r
}

// dataAddr is where a node's traffic between containers goes.
func dataAddr(s *store.Snapshot, node string) netip.Addr {
	if n, ok := s.Nodes.Get(node); ok {
		return n.DataAddr()
	}
	return netip.Addr{}
}

// networkServices are the services on a network, by name, with their tasks on
// all nodes.
func networkServices(s *store.Snapshot, n *object.Network) map[string]network.ServiceInfo {
	out := map[string]network.ServiceInfo{}
	for o := range s.Services.All() {
		info := network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
		on := false
		for _, v := range o.Endpoint.VirtualIPs {
			if v.NetworkID == n.ID && (!on || v.Addr.Addr().Is4()) {
				on, info.VIP = true, v.Addr.Addr()
			}
		}
		for t := range s.Tasks.By(store.ByService, o.ID) {
			if at, ok := placeOn(t.Networks, n.ID); ok && t.Status.State == swarm.TaskStateRunning {
				on = true
				info.Tasks = append(info.Tasks, networkTask(s, t, at))
			}
		}
		if !on || o.PendingDelete {
			continue
		}
		if n.Spec.Ingress {
			for _, p := range o.Endpoint.Ports {
				if modeOfPort(p) == swarm.PortConfigPublishModeIngress {
					info.Ports = append(info.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.TargetPort, p.PublishedPort))
				}
			}
		}
		out[o.Spec.Name] = info
	}
	return out
}

func networkTask(s *store.Snapshot, t *object.Task, at object.TaskNetwork) network.Task {
	shown := network.Task{
		Name: taskName(s, t), EndpointID: object.OverlayEndpointID(t.ID, at.ID), Info: map[string]string{},
	}
	if len(at.Addresses) > 0 {
		shown.EndpointIP = at.Addresses[0].Addr()
	}
	if addr := dataAddr(s, t.NodeID); addr.IsValid() {
		shown.Info["Host IP"] = addr.String()
	}
	return shown
}
