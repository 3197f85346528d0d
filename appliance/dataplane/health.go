package dataplane

import (
	"context"
	"fmt"

	"skep/store/object"
)

// Health is how this node does its part for all networks.
func (p *Plane) Health(ctx context.Context) object.NetworkHealth {
	h := object.NetworkHealth{Repaired: p.repaired.Load() + p.cfg.Overlay.Repaired(), Lacks: p.cfg.Lacks}
	p.mu.Lock()
	if p.fault != nil {
		h.Fault = p.fault.Error()
	}
	p.mu.Unlock()
	if p.cfg.Mode != nil {
		mode, err := p.cfg.Mode(ctx)
		if err != nil {
			mode = "none"
		}
		h.Balancer = string(mode)
	}
	for _, c := range p.cfg.Mesh.Conflicts() {
		h.Conflicts = append(h.Conflicts, object.PortConflict{Protocol: c.Protocol, Port: c.Port, Service: c.Service, Reason: c.Reason})
	}
	return h
}

// conflicts are those ports that the node does not have, in words.
func (p *Plane) conflicts() []string {
	var list []string
	for _, c := range p.cfg.Mesh.Conflicts() {
		list = append(list, fmt.Sprintf("port %d/%s of service %s: %s", c.Port, c.Protocol, short(c.Service), c.Reason))
	}
	return list
}
