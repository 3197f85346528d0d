package object

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
)

// Endpoint is a container's place on networks, as it is wanted: on one of the
// node's own, and on networks of the swarm.
type Endpoint struct {
	// ID is the container's ID.
	ID string
	// Network is "bridge", "none" or "host". One with Overlays is on "bridge".
	Network string
	// Interface names the bridge's device inside the container; empty means eth0.
	// Devices of Overlays come before it.
	Interface string `json:"Inside,omitempty"`
	Ports     []Port
	// Overlays are its places on networks of the swarm, in the order of their devices.
	Overlays []Overlay `json:",omitempty"`
	// Internal leaves the way out away: there is no device on the bridge, unless
	// ports are published by it.
	Internal bool `json:",omitempty"`
	// DNS is what the user wants of the resolver of an endpoint with Overlays; nil
	// means what the node has.
	DNS *ResolverConfig `json:",omitempty"`
}

// Overlay is an endpoint's place on a network of the swarm, with what was
// allocated for it.
type Overlay struct {
	Network string // its ID
	// Name is the network's; empty while whoever asks does not know it.
	Name string
	// Task is the ID of the task, or of the [Guest].
	Task string
	// Addresses are one for each family of the network, with the subnet's length.
	Addresses []netip.Prefix
	Aliases   []string `json:",omitempty"`
	// Interface names the device inside the container of a place that it was given
	// while it ran, or had then; empty means by the order of the places.
	Interface string `json:",omitempty"`
	// Ingress is set for the routing mesh, and Ports are what the task publishes
	// there: Host is the published port, Container the task's. A port's place in
	// the list is its index.
	Ingress bool   `json:",omitempty"`
	Ports   []Port `json:",omitempty"`
}

// ResolverConfig is what a user wants of a container's name resolution.
type ResolverConfig struct {
	// Nameservers are asked, from the container, for what the swarm does not know.
	Nameservers     []netip.Addr `json:",omitempty"`
	Search, Options []string     `json:",omitempty"`
}

// Port is a published port of an endpoint, which is its alone.
type Port struct {
	Protocol network.IPProtocol // tcp or udp
	// HostIP limits the port to one address of the node; empty means all.
	HostIP string
	// Host is the node's port; 0 means one that the node chooses.
	Host      uint16
	Container uint16
}

// Attachment is an endpoint as it was made.
type Attachment struct {
	Endpoint
	// Namespace is the path of the network namespace; empty for the host's own.
	Namespace string
	Address   string // CIDR
	Gateway   string
	MAC       string
	Interface string // name of the node's end
	// NetworkID and EndpointID are what the API calls the network and this.
	NetworkID, EndpointID string
	// Nameserver, Search and Options are what the container's resolv.conf is to
	// say. Without a Nameserver it says what the node's does.
	Nameserver      []string
	Search, Options []string `json:",omitempty"`
	// Overlays are those of the Endpoint as they were made.
	Overlays []OverlayAttachment `json:"Placed,omitempty"`
}

// OverlayAttachment is an [Overlay] as it was made.
type OverlayAttachment struct {
	Overlay
	// EndpointID is what the API calls it.
	EndpointID string
	// Interface is the device's name inside the container.
	Interface string
	MAC       string
	// Gateways are the network's, one for each family.
	Gateways []netip.Addr `json:",omitempty"`
}

// OverlayEndpointID is what the API calls the place of a task, or of a [Guest],
// on a network of the swarm.
func OverlayEndpointID(task, network string) string {
	sum := sha256.Sum256([]byte("endpoint " + task + " " + network))
	return hex.EncodeToString(sum[:])
}

// OverlayMAC is the hardware address that belongs to the addresses of a place on
// a network of the swarm: 02:42 and the first of IPv4, or the end of the first
// one if there is none; nil without an address.
func OverlayMAC(addrs []netip.Addr) net.HardwareAddr {
	if len(addrs) == 0 {
		return nil
	}
	of := addrs[0]
	if i := slices.IndexFunc(addrs, netip.Addr.Is4); i >= 0 {
		of = addrs[i]
	}
	b := of.AsSlice()
	return append(net.HardwareAddr{0x02, 0x42}, b[len(b)-4:]...)
}

// Clone is a copy that shares nothing with o.
func (o Overlay) Clone() Overlay {
	o.Addresses, o.Aliases, o.Ports = slices.Clone(o.Addresses), slices.Clone(o.Aliases), slices.Clone(o.Ports)
	return o
}

// Clone is a copy that shares nothing with e.
func (e Endpoint) Clone() Endpoint {
	e.Ports, e.Overlays = slices.Clone(e.Ports), slices.Clone(e.Overlays)
	for i := range e.Overlays {
		e.Overlays[i] = e.Overlays[i].Clone()
	}
	if e.DNS != nil {
		d := *e.DNS
		d.Nameservers, d.Search, d.Options = slices.Clone(d.Nameservers), slices.Clone(d.Search), slices.Clone(d.Options)
		e.DNS = &d
	}
	return e
}

// Clone is a copy that shares nothing with a.
func (a Attachment) Clone() Attachment {
	a.Endpoint = a.Endpoint.Clone()
	a.Nameserver, a.Search, a.Options = slices.Clone(a.Nameserver), slices.Clone(a.Search), slices.Clone(a.Options)
	a.Overlays = slices.Clone(a.Overlays)
	for i := range a.Overlays {
		a.Overlays[i].Overlay = a.Overlays[i].Clone()
		a.Overlays[i].Gateways = slices.Clone(a.Overlays[i].Gateways)
	}
	return a
}
