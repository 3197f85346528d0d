package engine

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// complete adds what managers know: names of nodes, and the endpoints that a
// node should know of and does not.
func complete(s *store.Snapshot, report *object.NetworkCheck) {
	expected := expectedOn(s, report.ID)
	for i := range report.Nodes {
		c := &report.Nodes[i]
		if n, ok := s.Nodes.Get(c.Node); ok {
			c.Hostname = n.Description.Hostname
		}
		if c.Unavailable != "" {
			continue
		}
		known := map[string]bool{}
		for _, e := range c.Endpoints {
			known[e.ID] = true
		}
		for _, e := range expected {
			if !known[e.ID] {
				e.Result, e.Reason = object.CheckUnprogrammed, "the node does not know of it"
				c.Endpoints = append(c.Endpoints, e)
			}
		}
		slices.SortStableFunc(c.Endpoints, func(a, b object.EndpointCheck) int { return cmp.Compare(a.Name, b.Name) })
	}
}

// expectedOn are the endpoints of a network that every node on it is to know of.
func expectedOn(s *store.Snapshot, network string) (list []object.EndpointCheck) {
	add := func(id, name, node string, at object.TaskNetwork) {
		e := object.EndpointCheck{
			ID: id, Name: name, Node: node, State: "active",
			Frames: object.CheckNo, Names: object.CheckNone, Balancer: object.CheckNone,
		}
		for _, p := range at.Addresses {
			e.Addresses = append(e.Addresses, p.Addr())
		}
		list = append(list, e)
	}
	for t := range s.Tasks.All() {
		at, ok := placeOn(t.Networks, network)
		if ok && t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning {
			add(t.ID, taskName(s, t), t.NodeID, at)
		}
	}
	for g := range s.Guests.All() {
		if g.Network.ID == network && len(g.Network.Addresses) > 0 {
			add(g.ID, g.Name, g.NodeID, g.Network)
		}
	}
	return list
}
