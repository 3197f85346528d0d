package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/ingress"
	"skep/net/link"
	"skep/net/overlay"
	"skep/store/object"
)

// shown is how many entries a fault names.
const shown = 3

// report is what is to be told of a network on this node, from what it is to be
// and what was found.
func report(in *input, n *place, f found) object.NodeCheck {
	c := object.NodeCheck{Asker: f.asker.name, Faults: slices.Concat(f.frames.Faults, f.faults)}
	if f.unread != nil {
		c.Faults = append(c.Faults, f.unread.Error())
	}
	if extra := f.frames.Superfluous; len(extra) > 0 {
		c.Faults = append(c.Faults, fmt.Sprintf("%d entries too many: %s", len(extra), list(extra)))
	}
	r := reporter{in: in, place: n, found: f, peers: map[link.MAC]bool{}}
	for _, peer := range n.overlay.Peers {
		r.peers[link.MAC(peer.MAC)] = true
	}
	by := in.parts(n.members)
	for _, service := range slices.Sorted(maps.Keys(by)) {
		for _, e := range by[service] {
			c.Endpoints = append(c.Endpoints, r.endpoint(e))
		}
	}
	slices.SortStableFunc(c.Endpoints, func(a, b object.EndpointCheck) int { return cmp.Compare(a.Name, b.Name) })
	return c
}

func list(entries []link.Entry) string {
	var words []string
	for _, e := range entries[:min(shown, len(entries))] {
		words = append(words, e.String())
	}
	if len(entries) > shown {
		words = append(words, "…")
	}
	return strings.Join(words, ", ")
}

// reporter is what reports of endpoints are made of.
type reporter struct {
	in *input
	*place
	found
	peers map[link.MAC]bool // that frames are to be sent to
}

func (r *reporter) endpoint(e takes) object.EndpointCheck {
	c := object.EndpointCheck{
		ID: e.ID, Name: e.ID, Node: e.Node, Addresses: e.Addresses, State: string(e.State),
		Frames: object.CheckYes, Names: object.CheckNone, Balancer: object.CheckNone,
	}
	if len(e.Names) > 0 {
		c.Name = e.Names[0]
	}
	var why []string
	for _, part := range []struct {
		mark *object.CheckMark
		of   func(takes) (object.CheckMark, string)
	}{{&c.Frames, r.sent}, {&c.Names, r.named}, {&c.Balancer, r.led}} {
		mark, reason := part.of(e)
		*part.mark = mark
		if mark == object.CheckNo {
			why = append(why, reason)
		}
	}
	if len(why) > 0 {
		c.Result, c.Reason = object.CheckUnprogrammed, strings.Join(why, "; ")
		return c
	}
	c.Result, c.Echo, c.Reason = r.heard(e)
	return c
}

// sent is whether frames find the endpoint.
func (r *reporter) sent(e takes) (object.CheckMark, string) {
	if len(e.Addresses) == 0 {
		return object.CheckNo, "it has no address"
	}
	here := e.Node == r.in.self.node
	mac := link.MAC(overlay.MAC(e.Addresses))
	lost := r.missing(mac, e.Addresses)
	switch {
	case r.unread != nil:
		return object.CheckNo, "the kernel's part cannot be read"
	case len(lost) > 0:
		return object.CheckNo, "missing: " + list(lost)
	case here && r.attached[e.ID], r.peers[mac] && !here:
		return object.CheckYes, ""
	case here && e.State == wire.EndpointActive:
		return object.CheckNo, "its container is not connected"
	case here:
		return object.CheckNone, ""
	case !r.in.view.Hosts[e.Node].Address.IsValid():
		return object.CheckNo, "the address of its node is not known"
	}
	return object.CheckNo, "its address is another's"
}

// missing are the kernel's entries of an endpoint that are not there.
func (r *reporter) missing(mac link.MAC, addrs []netip.Addr) (lost []link.Entry) {
	for _, e := range r.frames.Missing {
		if e.Table == link.Neighbours && slices.Contains(addrs, e.Address) || e.Table == link.Forwards && e.MAC == mac {
			lost = append(lost, e)
		}
	}
	return lost
}

// named is whether it is told by its service's name, or a guest by its own.
func (r *reporter) named(e takes) (object.CheckMark, string) {
	name := question(r.members, e)
	if e.part != active || name == "" || !r.asker.names {
		return object.CheckNone, ""
	}
	if err := r.refused[name]; err != nil {
		return object.CheckNo, err.Error()
	}
	for _, a := range e.Addresses {
		if !slices.Contains(r.told[name], a) {
			return object.CheckNo, fmt.Sprintf("%s is not told by %s", a, name)
		}
	}
	return object.CheckYes, ""
}

// led is whether connections to its service, or to its published ports, are led
// to it by every balancer of this node.
func (r *reporter) led(e takes) (object.CheckMark, string) {
	if e.part != active || r.balancers == 0 || !r.serves(e.Addresses) {
		return object.CheckNone, ""
	}
	if !r.balanced {
		return object.CheckNo, "a balancer is not as it should be"
	}
	return object.CheckYes, ""
}

func (r *reporter) serves(addrs []netip.Addr) bool {
	in := func(a netip.Addr) bool { return slices.Contains(addrs, a) }
	return slices.ContainsFunc(r.services, func(s balance.Service) bool {
		return slices.ContainsFunc(s.Backends, func(b balance.Backend) bool { return in(b.Address) })
	}) || slices.ContainsFunc(r.published, func(p ingress.Published) bool {
		return slices.ContainsFunc(p.Backends, func(b ingress.MeshBackend) bool { return in(b.Address) })
	})
}

// heard is whether it answered.
func (r *reporter) heard(e takes) (object.CheckResult, time.Duration, string) {
	h := r.in.view.Hosts[e.Node]
	switch {
	case e.State != wire.EndpointActive:
		return object.CheckUnasked, 0, "it does not serve: " + string(e.State)
	case h.Down:
		return object.CheckUnasked, 0, "its node is down"
	case e.part != active:
		return object.CheckUnasked, 0, "its node seems to be dead"
	case r.asker.path == "":
		return object.CheckUnasked, 0, "no container here to ask from"
	}
	slowest, asked := time.Duration(0), false
	for _, a := range e.Addresses {
		if _, ok := sameFamily(a, r.asker.sources); !ok {
			continue
		}
		took, ok := r.echoes[a]
		if !ok {
			return object.CheckSilent, 0, fmt.Sprintf("%s does not answer %s", a, r.asker.name)
		}
		slowest, asked = max(slowest, took), true
	}
	if !asked {
		return object.CheckUnasked, 0, "no address of its family to ask from"
	}
	return object.CheckOK, slowest, ""
}
