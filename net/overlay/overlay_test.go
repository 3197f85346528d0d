// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"net/netip"
	"testing"

	"skep/net/link/linktest"
	"skep/net/overlay"
)

// web is a network of both families as a node has it.
func web(n *node, peers ...overlay.Peer) *overlay.Network {
	return &overlay.Network{
		ID: "webwebwebweb0000", VNI: 4097, Port: 4789, MTU: 1450, Local: n.Address,
		Subnets: []overlay.Subnet{
			{Prefix: netip.MustParsePrefix("10.0.9.0/24"), Gateway: netip.MustParseAddr("10.0.9.1")},
			{Prefix: netip.MustParsePrefix("fd00:9::/64"), Gateway: netip.MustParseAddr("fd00:9::1")},
		},
		Peers: peers,
	}
}

const webID = "webwebwebweb0000"

// pair is two nodes with a container each on the network web, which know of each other.
func pair(tb testing.TB) (n1, n2 *node, c1, c2 *box) {
	tb.Helper()
	sw := linktest.NewSwitch(tb)
	n1, n2 = newNode(tb, sw), newNode(tb, sw)
	c1, c2 = between(tb, n1, n2)
	n1.right(tb, webID)
	n2.right(tb, webID)
	return n1, n2, c1, c2
}

func between(tb testing.TB, n1, n2 *node) (c1, c2 *box) {
	tb.Helper()
	n1.set(tb, web(n1))
	n2.set(tb, web(n2))
	c1 = n1.attach(tb, "c1", webID, "10.0.9.5/24", "fd00:9::5/64")
	c2 = n2.attach(tb, "c2", webID, "10.0.9.6/24", "fd00:9::6/64")
	n1.set(tb, web(n1, c2.peer()))
	n2.set(tb, web(n2, c1.peer()))
	return c1, c2
}

func TestOverlay_ContainersOfDifferentNodesReachEachOther(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	neighbour := n1.attach(t, "c3", webID, "10.0.9.7/24", "fd00:9::7/64")
	serve(t, c1)
	serve(t, c2)
	serve(t, neighbour)
	for _, way := range []struct{ from, to *box }{{c1, c2}, {c2, c1}, {c1, neighbour}, {neighbour, c1}, {c1, c1}} {
		for _, a := range way.to.addrs() {
			reach(t, way.from, "tcp", a, 10)
			reach(t, way.from, "tcp", a, 1<<20)
			reach(t, way.from, "udp", a, 10)
			reach(t, way.from, "udp", a, 1400) // whole
			reach(t, way.from, "udp", a, 9000) // in fragments
		}
	}
}
