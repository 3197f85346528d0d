// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/nft"
)

// Member is a container on the ingress network.
type Member struct {
	Namespace string // the path of its network namespace
	Interface string // the network's device in it
	Address   netip.Prefix
	Gateway   netip.Addr
	Subnet    netip.Prefix
	Ports     []MemberPort
}

// MemberPort is a port that the container's service publishes.
type MemberPort struct {
	Protocol network.IPProtocol
	Target   uint16 // the port that the container listens on
	// Index numbers the ports that a task publishes, from 0, also those of one
	// target. All nodes know it by the same.
	Index int
}

const (
	unixICMP = unix.IPPROTO_ICMP
	// remembered is how long the kernel remembers who has sent UDP.
	remembered = 3 * time.Minute
)

// planMember is the table in a container's namespace.
//
// A connection to a wire port goes to the port that the container listens on.
// Two nodes may bring the same client's address and port at once; the empty
// chain of address translation at input makes the kernel give one of them
// another port then, and only then.
func planMember(m Member) nft.Table {
	var r nft.Rule
	self := netip.PrefixFrom(m.Address.Addr(), 32)
	in := r.IfName(m.Interface)
	sender := []nft.Part{nft.SourceIPv4, nft.SourcePort, nft.DestPort}
	return nft.Table{
		Name: meshTable,
		Maps: []nft.Map{
			{Name: "targets", Key: "inet_proto . inet_service", Elements: targetsOf(m)},
			{Name: "senders", Key: "ipv4_addr . inet_service . inet_service", Timeout: remembered},
		},
		Chains: []nft.Chain{
			base("prerouting", "nat", nft.Prerouting, -100, redirects(m)...),
			base("filter", "filter", nft.Input, 0,
				// Nobody comes round by another device.
				r.NotIfName(m.Interface).NotIfName("lo").To(self).Drop(),
				in.Established().Accept(),
				in.Translated().Accept(),
				in.From(routers()).In("targets", nft.Protocol, nft.DestPort).Accept(),
				in.Proto(unix.IPPROTO_ICMP).Accept(),
				in.Drop()),
			base("input", "nat", nft.Input, 100),
			// Who asks by UDP is answered from the address that was asked, also by
			// programs that leave the choice to the kernel: it knows of no connection
			// and would take the address that is on the way to the client.
			base("remember", "filter", nft.Input, 110,
				in.Proto(unix.IPPROTO_UDP).Remember("senders", sender...)),
			base("answer", "route", nft.Output, -300,
				r.Proto(unix.IPPROTO_UDP).NotFrom(self).
					In("senders", nft.DestIPv4, nft.DestPort, nft.SourcePort).SetSource(self.Addr())),
		},
	}
}

// redirects lead the wire ports to the container's own. They are not for
// members of the network: those have no business here.
func redirects(m Member) []nft.Rule {
	var out []nft.Rule
	in := nft.Rule{}.IfName(m.Interface).To(netip.PrefixFrom(m.Address.Addr(), 32)).NotFrom(m.Subnet.Masked())
	for _, p := range portsOf(m) {
		if first, ok := WirePort(p.Index, 1); ok {
			out = append(out, in.Proto(p.listen().number()).Masked(nft.DestPort, indexOfWire, first&indexOfWire).
				Translate([]nft.Target{{Address: m.Address.Addr(), Port: p.Target}}))
		}
	}
	return out
}

func targetsOf(m Member) []nft.Element {
	var out []nft.Element
	for _, p := range portsOf(m) {
		e := nft.Element{Key: p.listen().key()}
		if !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// portsOf is the ports that the mesh serves, in order.
func portsOf(m Member) []MemberPort {
	ports := slices.DeleteFunc(slices.Clone(m.Ports), func(p MemberPort) bool {
		return p.Protocol != network.TCP && p.Protocol != network.UDP
	})
	slices.SortFunc(ports, func(x, y MemberPort) int {
		return cmp.Or(cmp.Compare(x.Index, y.Index), cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Target, y.Target))
	})
	return slices.Compact(ports)
}

func (p MemberPort) listen() listen { return listen{proto: p.Protocol, port: p.Target} }
