// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"skep/net/nft"
)

// Table is the name of the packet filter's table in each container's namespace.
const Table = "skep-dns"

// beforeTracking is the priority of raw chains: they come before connection tracking.
const beforeTracking = -300

// portDNS is where containers ask.
const portDNS = 53

// plan is the table that leads what a container asks [Address] at port 53 to
// another port of that address, and has the answers come from port 53. So the
// container may itself serve port 53 on all its addresses. Packets are
// rewritten one by one: no connection is tracked.
//
// While nobody serves the other port, which is while this program is started
// anew, clients are not refused: they ask again after a moment instead of
// giving up at once. The kernel's resets are dropped; its errors about
// datagrams find nobody, because they name the other port.
func plan(port uint16) nft.Table {
	address := netip.PrefixFrom(netip.MustParseAddr(Address), 32)
	to, from := nft.Rule{}.To(address), nft.Rule{}.From(address)
	c := nft.Chain{Name: "output", Hook: &nft.Hook{Type: "filter", Point: nft.Output, Priority: beforeTracking}}
	for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.Rules = append(c.Rules, to.Proto(proto).DestinationPort(portDNS).SetDestinationPort(proto, port).Untracked())
	}
	c.Rules = append(c.Rules, from.Proto(unix.IPPROTO_TCP).SourcePort(port).Refused().Drop())
	for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.Rules = append(c.Rules, from.Proto(proto).SourcePort(port).SetSourcePort(proto, portDNS).Untracked())
	}
	return nft.Table{Name: Table, Chains: []nft.Chain{c}}
}

// mend makes the table of this thread's namespace right, if the ruleset has
// changed since it was known to be. It reports whether there was anything to do.
func mend(port uint16, known uint32) (generation uint32, mended bool, err error) {
	c, err := nft.Open()
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = c.Close() }()
	if generation, err = c.Generation(); err != nil || generation == known {
		return generation, false, err
	}
	want := plan(port)
	have, _, err := c.Read(want.Family, want.Name)
	if err != nil || have.String() == want.String() {
		return generation, false, err
	}
	if err = c.Replace(want); err != nil {
		return 0, false, fmt.Errorf("lead port %d to port %d: %w", portDNS, port, err)
	}
	generation, err = c.Generation()
	return generation, true, err
}
