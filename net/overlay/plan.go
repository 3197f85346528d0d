// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"

	"skep/net/link"
	"skep/net/nft"
)

// The devices of a network's namespace, beside the ports.
const (
	bridgeName = "br0"
	tunnelName = "vxlan0"
)

// bridgeMAC is the bridge's where it is no host. Nothing is sent from or to it.
func bridgeMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x4b, 0, 0, 0} }

// layout is what a network's namespace is to hold, but for the table of who is
// where, which is large. It follows from the network and who is attached.
type layout struct {
	bridge link.Device
	host   []netip.Prefix // the bridge's addresses
	tunnel link.Vxlan
	ports  map[string]end // by the device's name
	table  nft.Table
}

func planLayout(n *Network, ends []end, table string) layout {
	l := layout{
		bridge: link.Device{Name: bridgeName, Kind: "bridge", Up: true, MTU: n.MTU, MAC: bridgeMAC()},
		tunnel: link.Vxlan{Name: tunnelName, VNI: n.VNI, Port: n.Port, Local: n.Local, MTU: n.MTU},
		ports:  map[string]end{},
		table:  planTable(ends, table),
	}
	if n.Router != nil {
		l.bridge.MAC, l.host = n.Router.MAC, n.Router.Addresses
	}
	for _, e := range ends {
		l.ports[e.Port] = e
	}
	return l
}

// tunnelTreatment is the bridge's towards all that is elsewhere: frames that
// are for none of its ports can only be for there. That device then drops
// those to stations that it has no entry for.
func tunnelTreatment() link.Treatment {
	return link.Treatment{Unknown: true, Multicast: true, Broadcast: true}
}

// planTable lets each port pass only what is from whom it belongs to: frames
// from their MAC; in them packets from their addresses, ARP and neighbour
// discovery about these. What comes from other nodes passed there.
func planTable(ends []end, name string) nft.Table {
	var r nft.Rule
	t := nft.Table{
		Family: nft.Bridge, Name: name,
		Maps: []nft.Map{{Name: "ports", Width: len(nft.DeviceKey(""))}},
		Chains: []nft.Chain{{
			Name: "prerouting",
			// Before any table that looks at who sent a frame.
			Hook: &nft.Hook{Type: "filter", Point: nft.Prerouting, Priority: -400},
			Rules: []nft.Rule{
				r.IfName(tunnelName).Accept(),
				r.ByDevice("ports"),
				r.Drop(),
			},
		}},
	}
	for _, e := range ends {
		t.Chains = append(t.Chains, e.chain)
		t.Maps[0].Elements = append(t.Maps[0].Elements, nft.Element{Key: nft.DeviceKey(e.Port), Chain: e.Port})
	}
	return t
}

// planChain is the chain of one port.
func planChain(port string, mac net.HardwareAddr, addrs []netip.Prefix) nft.Chain {
	var r nft.Rule
	rules := []nft.Rule{r.NotFromMAC(mac).Drop()}
	six := r.Carries(nft.EtherIPv6)
	var v6 []netip.Addr
	for _, p := range addrs {
		a := p.Addr()
		if a.Is6() {
			v6 = append(v6, a)
			continue
		}
		rules = append(rules, r.Carries(nft.EtherIPv4).FromAddress(a).Accept(), r.SaysARP(a, mac).Accept())
	}
	if len(v6) > 0 {
		v6 = append(v6, link.Local(mac))
		rules = append(rules,
			six.ICMPv6(nft.RouterAdvertisement).Drop(),
			six.ICMPv6(nft.Redirect).Drop())
		for _, a := range v6 {
			rules = append(rules, six.FromAddress(a).ICMPv6(nft.NeighbourAdvertisement).About(a).Accept())
		}
		rules = append(rules, six.ICMPv6(nft.NeighbourAdvertisement).Drop())
		for _, a := range v6 {
			rules = append(rules, six.FromAddress(a).Accept())
		}
	}
	return nft.Chain{Name: port, Rules: append(rules, r.Drop())}
}

// portName is the device's name of a container's place on a network.
func portName(id, network string) string {
	sum := sha256.Sum256([]byte(id + " " + network))
	return "p" + hex.EncodeToString(sum[:4])
}

func byPort(a, b end) int { return cmp.Compare(a.Port, b.Port) }

func sorted(ends []end) []end {
	slices.SortFunc(ends, byPort)
	return ends
}
