package dataplane

import (
	"maps"
	"slices"

	"skep/appliance/wire"
)

// part is how far an endpoint takes part in what leads to its service.
type part int

const (
	// absent: nothing leads to it, and what it has of connections is cut.
	absent part = iota
	draining
	active
)

// takes is an endpoint and its part.
type takes struct {
	wire.Endpoint
	part part
}

// parts are the endpoints of a network by service, in the order of their IDs.
func (in *input) parts(m *wire.NetworkMembers) map[string][]takes {
	by := map[string][]takes{}
	for _, id := range slices.Sorted(maps.Keys(m.Endpoints)) {
		e := m.Endpoints[id]
		by[e.Service] = append(by[e.Service], takes{e, in.part(e)})
	}
	for service, list := range by {
		in.doubt(service, list)
	}
	return by
}

func (in *input) part(e wire.Endpoint) part {
	h, known := in.view.Hosts[e.Node]
	if e.Node != in.self.node && (!known || h.Down || in.suspended[e.Node]) {
		return absent
	}
	told := partOf(e.State)
	if least, ok := in.leaving[e.ID]; ok {
		return min(told, least)
	}
	return told
}

// partOf is what the managers mean by a state.
func partOf(s wire.EndpointState) part {
	switch s {
	case wire.EndpointActive:
		return active
	case wire.EndpointDraining:
		return draining
	case wire.EndpointPrepared:
	}
	return absent
}

// doubt lets those that are only suspended take part, if there are no others:
// a hint may be wrong, and nothing is gained by believing it then.
func (in *input) doubt(service string, list []takes) {
	if service == "" || slices.ContainsFunc(list, func(t takes) bool { return t.part == active }) {
		return
	}
	for i, t := range list {
		if t.State == wire.EndpointActive && !in.view.Hosts[t.Node].Down && in.suspended[t.Node] {
			list[i].part = active
		}
	}
}
