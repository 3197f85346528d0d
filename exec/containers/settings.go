package containers

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// settings is how the container is on its networks.
func (e *Engine) settings(c *instance, r *record) *container.NetworkSettings {
	s := &container.NetworkSettings{Ports: network.PortMap{}, Networks: map[string]*network.EndpointSettings{}}
	for p := range r.Config.ExposedPorts {
		s.Ports[p] = nil
	}
	name, err := e.network(r.Host.NetworkMode)
	if err != nil || name == "" {
		return s
	}
	at, ok := e.cfg.Networks.Attachment(r.ID)
	if shown := r.onBridge(); name != "bridge" || shown {
		s.Networks[name] = &network.EndpointSettings{}
		if ok && at.Network == name {
			fillNode(s.Networks[name], at)
		}
	}
	e.fillOverlays(s, c, r, at)
	if !ok {
		return s
	}
	s.SandboxID, s.SandboxKey = r.ID, at.Namespace
	for _, p := range at.Ports {
		port, ok := network.PortFrom(p.Container, p.Protocol)
		if !ok {
			continue
		}
		s.Ports[port] = append(s.Ports[port], network.PortBinding{HostIP: hostIP(p), HostPort: strconv.Itoa(int(p.Host))})
	}
	return s
}

// onBridge reports whether the bridge is the container's network, and not just
// the way out of one on networks of the swarm.
func (r *record) onBridge() bool {
	return len(r.Extra.Overlays) == 0 && !userDefined(r.Host.NetworkMode)
}

func fillNode(ep *network.EndpointSettings, at object.Attachment) {
	ep.NetworkID, ep.EndpointID = at.NetworkID, at.EndpointID
	if p, err := netip.ParsePrefix(at.Address); err == nil {
		ep.IPAddress, ep.IPPrefixLen = p.Addr(), p.Bits()
	}
	if gw, err := netip.ParseAddr(at.Gateway); err == nil {
		ep.Gateway = gw
	}
	ep.MacAddress = hardwareAddr(at.MAC)
}

// fillOverlays tells of the networks of the swarm: those that the container is
// on, or else those that it was on, or is to be on.
func (e *Engine) fillOverlays(s *container.NetworkSettings, c *instance, r *record, at object.Attachment) {
	places, asked := at.Overlays, r.guestNetworks()
	if len(places) == 0 {
		places = c.formerPlaces(r)
	}
	for i, o := range places {
		ep := overlaySettings(r, o)
		if j := slices.IndexFunc(asked, func(name string) bool { return called(o.Overlay, name) }); j >= 0 && i >= len(r.Extra.Overlays) {
			q := r.asked(asked[j]).Copy()
			ep.IPAMConfig, ep.DriverOpts = q.IPAMConfig, q.DriverOpts
		}
		s.Networks[cmp.Or(o.Name, o.Network)] = ep
	}
}

// formerPlaces are those that the container had when it last ran, or is to have
// when it does, without what was given for them. Their order is that of places.
func (c *instance) formerPlaces(r *record) []object.OverlayAttachment {
	last := c.status().Overlays
	if len(last) == 0 {
		last = slices.Clone(r.Extra.Overlays)
		for _, name := range r.guestNetworks() {
			last = append(last, object.Overlay{Name: name, Aliases: r.asked(name).Aliases})
		}
	}
	var out []object.OverlayAttachment
	for _, o := range last {
		out = append(out, object.OverlayAttachment{Overlay: object.Overlay{Network: o.Network, Name: o.Name, Aliases: o.Aliases}})
	}
	return out
}

// placesOf are an attachment's places on networks of the swarm.
func placesOf(at object.Attachment) []object.Overlay {
	var places []object.Overlay
	for _, o := range at.Overlays {
		places = append(places, o.Overlay)
	}
	return places
}

func overlaySettings(r *record, o object.OverlayAttachment) *network.EndpointSettings {
	ep := &network.EndpointSettings{
		NetworkID: o.Network, EndpointID: o.EndpointID, MacAddress: hardwareAddr(o.MAC),
		Aliases: slices.Clone(o.Aliases), DNSNames: dnsNames(r, o.Aliases),
	}
	for _, p := range o.Addresses {
		if p.Addr().Is4() {
			ep.IPAddress, ep.IPPrefixLen = p.Addr(), p.Bits()
		} else {
			ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = p.Addr(), p.Bits()
		}
	}
	for _, gw := range o.Gateways {
		if gw.Is4() {
			ep.Gateway = gw
		} else {
			ep.IPv6Gateway = gw
		}
	}
	return ep
}

// dnsNames are what others find the container by.
func dnsNames(r *record, aliases []string) []string {
	var names []string
	for _, n := range append([]string{r.Name, r.ID[:12]}, aliases...) {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func hardwareAddr(text string) network.HardwareAddr {
	mac, err := net.ParseMAC(text)
	if err != nil {
		return nil
	}
	return network.HardwareAddr(mac)
}

func hostIP(p object.Port) netip.Addr {
	if ip, err := netip.ParseAddr(p.HostIP); err == nil {
		return ip
	}
	return netip.IPv4Unspecified()
}
