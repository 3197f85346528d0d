package dataplane

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/net/dns"
	"skep/net/overlay"
	"skep/store/object"
)

// Attachment is what an endpoint got.
func (p *Plane) Attachment(id string) (object.Attachment, bool) {
	at, ok := p.cfg.Attach.Attachment(id)
	if !ok {
		return at, false
	}
	return p.dress(at), true
}

// dress adds what was made on networks of the swarm.
func (p *Plane) dress(at object.Attachment) object.Attachment {
	e := at.Endpoint
	if len(e.Overlays) == 0 {
		return at
	}
	at = at.Clone()
	d := p.current()
	at.Overlays = nil
	for _, o := range e.Overlays {
		oa := object.OverlayAttachment{
			Overlay: o.Clone(), EndpointID: object.OverlayEndpointID(o.Task, o.Network), Interface: deviceOf(e, o.Network),
		}
		if addrs := bare(o.Addresses); len(addrs) > 0 {
			oa.MAC = overlay.MAC(addrs).String()
		}
		if n := d.place(o.Network); n != nil {
			for _, s := range n.members.Subnets {
				oa.Gateways = append(oa.Gateways, s.Gateway)
			}
		}
		at.Overlays = append(at.Overlays, oa)
	}
	at.Nameserver, at.Search, at.Options = resolv(e, at.Nameserver)
	return at
}

// resolv is what the endpoint's resolv.conf is to say: where it asks, which is
// not at the node's own servers if others have names on its networks; the
// search domains that the user wants; and the options. Names of the swarm have
// no dots, and are asked for as they are.
func resolv(e object.Endpoint, own []string) (servers, search, options []string) {
	servers = own
	if c := e.DNS; c != nil {
		search, options = slices.Clone(c.Search), slices.Clone(c.Options)
		if len(c.Nameservers) > 0 {
			servers = nil
		}
		for _, a := range c.Nameservers {
			servers = append(servers, a.String())
		}
	}
	if !asks(e) {
		return servers, search, options
	}
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(options, "ndots:0")
	}
	return []string{dns.Address}, search, options
}

// deviceOf is the name, inside the container, of the device for a network: the
// swarm's networks have the first numbers in their order, then comes the node's
// bridge, if it has a device there, and the routing mesh is last. A place that
// was given to a container that ran has a name of its own.
func deviceOf(e object.Endpoint, id string) string {
	number := 0
	for _, o := range e.Overlays {
		switch {
		case o.Network == id && o.Interface != "":
			return o.Interface
		case o.Ingress:
		case o.Network == id:
			return fmt.Sprintf("eth%d", number)
		default:
			number++
		}
	}
	if !e.Internal || len(e.Ports) > 0 {
		number++
	}
	return fmt.Sprintf("eth%d", number)
}

// Stats are the counters of an endpoint's devices, by their names inside.
func (p *Plane) Stats(id string) (map[string]container.NetworkStats, error) {
	own, err := p.cfg.Attach.Stats(id)
	if err != nil || p.member(id) == nil {
		return own, err
	}
	swarms, err := p.cfg.Overlay.Stats(id)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	all := maps.Clone(own)
	maps.Copy(all, swarms)
	return all, nil
}

// List is the node's own networks.
func (p *Plane) List(ctx context.Context) ([]network.Inspect, error) {
	return p.cfg.Attach.List(ctx)
}
