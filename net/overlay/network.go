// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"skep/net/link"
	"skep/store/object"
)

// Network is a network as this node is to have it. Whoever has handed one to
// [Overlay.Set] does not change it any more.
type Network struct {
	ID string
	// VNI tells it apart from others in the tunnels to the UDP port Port.
	VNI  uint32
	Port uint16
	// MTU is that of the containers' devices. The underlay bears 50 bytes more,
	// or 70 if it is IPv6.
	MTU int
	// Local is this node's address in the underlay.
	Local   netip.Addr
	Subnets []Subnet
	// Router makes the node itself a host on the network; nil for most.
	Router *Router
	// Peers are all that are on the network by other nodes. Where two claim the
	// same address or MAC the later has it.
	Peers []Peer
}

// Subnet is one of a network's. Nobody is at the gateway's address but a router.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// Router is the node as a host on a network, which forwards what comes.
type Router struct {
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
}

// Peer is an endpoint by another node, or that node's router: then it may have
// no addresses, and is found by its MAC only.
type Peer struct {
	Addresses []netip.Addr
	MAC       net.HardwareAddr
	VTEP      netip.Addr // of the node, in the underlay
}

// MAC is the hardware address that belongs to an endpoint's addresses.
func MAC(addrs []netip.Addr) net.HardwareAddr { return object.OverlayMAC(addrs) }

// sameButPeers reports whether only the peers may differ.
func (n *Network) sameButPeers(m *Network) bool {
	return n.ID == m.ID && n.VNI == m.VNI && n.Port == m.Port && n.MTU == m.MTU && n.Local == m.Local &&
		slices.Equal(n.Subnets, m.Subnets) && n.Router.equal(m.Router)
}

func (r *Router) equal(o *Router) bool {
	if r == nil || o == nil {
		return r == o
	}
	return bytes.Equal(r.MAC, o.MAC) && slices.Equal(r.Addresses, o.Addresses)
}

// without is the network as a record keeps it.
func (n *Network) without() *Network {
	m := *n
	m.Peers = nil
	return &m
}

// safeID is one that may be a file's name.
var safeID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]*$`)

const maxVNI = 1<<24 - 1

func (n *Network) check() error {
	switch {
	case !safeID.MatchString(n.ID):
		return fmt.Errorf("network ID %q: not letters and digits", n.ID)
	case n.VNI == 0 || n.VNI > maxVNI:
		return fmt.Errorf("VNI %d: not one of 24 bits", n.VNI)
	case n.Port == 0:
		return errors.New("the port is missing")
	case !n.Local.IsValid() || n.Local.IsUnspecified():
		return errors.New("the node's own address is missing")
	case n.MTU < 68 || n.MTU > 65535:
		return fmt.Errorf("MTU %d: not from 68 to 65535", n.MTU)
	case n.Router != nil && len(n.Router.MAC) != len(link.MAC{}):
		return fmt.Errorf("router: MAC %q: not six bytes", n.Router.MAC)
	}
	return nil
}

// check says why a peer cannot be programmed, if so: then the others are.
func (p Peer) check(local netip.Addr) error {
	if len(p.MAC) != len(link.MAC{}) {
		return fmt.Errorf("peer %v: MAC %q: not six bytes", p.Addresses, p.MAC)
	}
	if !p.VTEP.IsValid() || p.VTEP.Is4() != local.Is4() {
		return fmt.Errorf("peer %v: node %s: not of the same family as %s", p.Addresses, p.VTEP, local)
	}
	return nil
}

// clashes finds networks that cannot be on one node at once.
func clashes(networks []*Network) map[string]error {
	out := map[string]error{}
	type tunnel struct {
		vni  uint32
		port uint16
	}
	by := map[tunnel]string{}
	for _, n := range networks {
		t := tunnel{n.VNI, n.Port}
		if other, ok := by[t]; ok {
			out[n.ID] = fmt.Errorf("VNI %d on port %d is network %s's", n.VNI, n.Port, other)
			continue
		}
		by[t] = n.ID
	}
	return out
}
