// Package dataplane makes this node's part of the swarm's networks as the
// managers say it is to be.
//
// [Plane.Set] takes what they say. Pure functions turn it into what each part
// is to have (frames: net/overlay, addresses of services: net/balance,
// published ports: net/ingress, names: net/dns), and [Plane.Run] has the parts
// follow, in an order in which no name leads where no packet goes, and then
// acknowledges. A [Plane] also is what containers get their networks from: it
// puts the swarm's in beside the node's own (net/attach).
//
// It allocates nothing and decides nothing about tasks, and what it knows of
// other nodes it has from the managers alone.
package dataplane
