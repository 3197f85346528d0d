package dataplane

import (
	"context"
	"fmt"
	"strings"

	"skep/appliance/wire"
	"skep/store/object"
)

// Health is how this node does its part for all networks.
func (p *Plane) Health(ctx context.Context) object.NetworkHealth {
	h := object.NetworkHealth{
		Encrypts: p.cfg.ESP != nil, Repaired: p.repaired.Load() + p.cfg.Overlay.Repaired(), Lacks: p.cfg.Lacks,
	}
	mode, reason, err := p.cfg.Mode(ctx)
	if h.Balancer, h.BalancerReason = string(mode), oneLine(reason); err != nil {
		h.BalancerReason = oneLine(err.Error())
	}
	p.mu.Lock()
	view, d, fault := p.view, p.now, p.fault
	p.mu.Unlock()
	if fault != nil {
		h.Fault = oneLine(fault.Error())
	}
	h.Missing = d.missing(view)
	for _, c := range p.cfg.Mesh.Conflicts() {
		h.Conflicts = append(h.Conflicts, object.PortConflict{Protocol: c.Protocol, Port: c.Port, Service: c.Service, Reason: c.Reason})
	}
	return h
}

// missing are those networks of view that the node is to have and has not.
func (d *desired) missing(view *wire.NetworkView) (list []object.MissingNetwork) {
	if view == nil {
		return nil
	}
	for _, m := range byID(view.Networks) {
		var reason string
		if n := d.place(m.ID); n == nil {
			reason = d.without(m)
		} else {
			reason = d.unmeshed(n)
		}
		if reason != "" {
			list = append(list, object.MissingNetwork{ID: m.ID, Name: m.Name, Reason: oneLine(reason)})
		}
	}
	return list
}

// oneLine is a text of joined errors as one line.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// conflicts are those ports that the node does not have, in words.
func (p *Plane) conflicts() []string {
	var list []string
	for _, c := range p.cfg.Mesh.Conflicts() {
		list = append(list, fmt.Sprintf("port %d/%s of service %s: %s", c.Port, c.Protocol, short(c.Service), c.Reason))
	}
	return list
}
