package tasks

import (
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// networkMode is the one of the node's own networks that the task asks for, by
// default the bridge.
func networkMode(a *object.Assignment) container.NetworkMode {
	for _, n := range a.Revision.Spec.Networks {
		switch n.Target {
		case network.NetworkHost, network.NetworkNone:
			return container.NetworkMode(n.Target)
		}
	}
	return network.NetworkBridge
}

// places are what the task has on networks: ports of the node, and overlays.
// Ports in ingress mode are the routing mesh's. A task on the node's network
// alone, or on none, is not in it.
func places(a *object.Assignment) (ports []object.Port, overlays []object.Overlay) {
	ports, mesh := split(a)
	if networkMode(a) != network.NetworkBridge {
		return ports, nil
	}
	for i, n := range a.Task.Networks {
		o := object.Overlay{Network: n.ID, Task: a.Task.ID, Addresses: n.Addresses, Aliases: n.Aliases}
		if last := i == len(a.Task.Networks)-1; last && len(mesh) > 0 && !asksFor(a, n.ID) {
			o.Ingress, o.Ports = true, mesh
		}
		overlays = append(overlays, o.Clone())
	}
	return ports, overlays
}

// served are the ports that others reach the task at: its node's and the
// routing mesh's. What the node's own network serves is not the task's alone.
func served(a *object.Assignment) []object.Port {
	if networkMode(a) != network.NetworkBridge {
		return nil
	}
	host, mesh := split(a)
	return slices.Concat(host, mesh)
}

// asksFor reports whether the service is on a network because it says so. The
// routing mesh's is the one that it does not name.
func asksFor(a *object.Assignment, id string) bool {
	return slices.ContainsFunc(a.Revision.Spec.Networks, func(n swarm.NetworkAttachmentConfig) bool { return n.Target == id })
}

// split are the task's published ports: those of its node, and those of the
// routing mesh.
func split(a *object.Assignment) (host, mesh []object.Port) {
	for _, p := range a.Task.Ports {
		proto := p.Protocol
		if proto == "" {
			proto = network.TCP
		}
		port := object.Port{Protocol: proto, Host: uint16(p.PublishedPort), Container: uint16(p.TargetPort)}
		if p.PublishMode == swarm.PortConfigPublishModeHost {
			host = append(host, port)
		} else {
			mesh = append(mesh, port)
		}
	}
	return host, mesh
}
