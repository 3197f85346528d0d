package containers

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// network names the node's own network of a mode, or is empty for that of
// another container. A container on networks of the swarm is on the bridge.
func (e *Engine) network(mode container.NetworkMode) (string, error) {
	switch {
	case mode.IsNone():
		return "none", nil
	case mode.IsHost():
		return "host", nil
	case mode.IsContainer():
		_, err := e.find(mode.ConnectedContainer())
		return "", err
	}
	return "bridge", nil
}

// connect gives the container its network namespace.
func (e *Engine) connect(ctx context.Context, r *record) (object.Attachment, error) {
	name, err := e.network(r.Host.NetworkMode)
	if err != nil {
		return object.Attachment{}, err
	}
	if name == "" {
		return e.joined(r)
	}
	guests, err := e.attachGuests(ctx, r)
	if err != nil {
		return object.Attachment{}, err
	}
	ep, err := endpoint(r, name, guests)
	if err != nil {
		return object.Attachment{}, err
	}
	return e.cfg.Networks.Connect(ctx, ep)
}

// joined is the network of the container whose network this one shares.
func (e *Engine) joined(r *record) (object.Attachment, error) {
	other, err := e.find(r.Host.NetworkMode.ConnectedContainer())
	if err != nil {
		return object.Attachment{}, err
	}
	at, ok := e.cfg.Networks.Attachment(other.id)
	if !ok || !other.status().Running {
		return at, object.Errorf(errdefs.ErrConflict, "cannot join network of a non running container: %s", other.id)
	}
	return at, nil
}

// endpoint is the place of a container on the node's network and those of the
// swarm. Devices are named in this order: overlays, the bridge, the routing mesh.
func endpoint(r *record, name string, guests []object.Overlay) (object.Endpoint, error) {
	ports, err := publish(r)
	if err != nil {
		return object.Endpoint{}, err
	}
	ep := object.Endpoint{
		ID: r.ID, Network: name, Ports: ports,
		Overlays: slices.Concat(r.Extra.Overlays, guests),
	}
	if len(ep.Overlays) == 0 {
		return ep, nil
	}
	before := 0
	for _, o := range ep.Overlays {
		if !o.Ingress {
			before++
		}
	}
	if before > 0 {
		ep.Interface = fmt.Sprintf("eth%d", before)
	}
	if h := &r.Host; len(h.DNS)+len(h.DNSSearch)+len(h.DNSOptions) > 0 {
		ep.DNS = &object.ResolverConfig{Nameservers: h.DNS, Search: h.DNSSearch, Options: h.DNSOptions}
	}
	return ep, nil
}

// publish lists the ports that the container publishes on the node.
func publish(r *record) ([]object.Port, error) {
	ports := append([]object.Port(nil), r.Extra.Ports...)
	bound := map[mobynet.Port]bool{}
	for p, bindings := range r.Host.PortBindings {
		for _, b := range bindings {
			bound[p] = true
			host, err := strconv.ParseUint("0"+b.HostPort, 10, 16)
			if err != nil {
				return nil, invalid("invalid host port %q: a range or number that is none", b.HostPort)
			}
			port := object.Port{Protocol: p.Proto(), Host: uint16(host), Container: p.Num()}
			if b.HostIP.IsValid() && !b.HostIP.IsUnspecified() {
				port.HostIP = b.HostIP.String()
			}
			ports = append(ports, port)
		}
	}
	if r.Host.PublishAllPorts {
		for p := range r.Config.ExposedPorts {
			if !bound[p] {
				ports = append(ports, object.Port{Protocol: p.Proto(), Container: p.Num()})
			}
		}
	}
	return ports, nil
}
