package appliance

import (
	"net/netip"

	"skep/appliance/membership"
	"skep/net/gossip"
)

// newGossip finds out sooner which nodes are alive. This node leads nothing to
// one that seems dead; if it leads the swarm, its manager hears of it.
func (n *node) newGossip() *gossip.Gossip {
	return gossip.New(gossip.Config{
		Version: Version,
		Changed: func(node string, alive bool) {
			n.membership.Hint(node, !alive)
			n.network.plane.Suspend(node, !alive)
		},
		Logger: n.logger.With("part", "gossip"),
	})
}

// gossipAs is what the swarm says of who is in it.
func gossipAs(m membership.Gossip) gossip.State {
	s := gossip.State{Cluster: m.Cluster, NodeID: m.Node, Version: m.Version, Keys: m.Keys}
	for _, p := range m.Nodes {
		if addr, err := netip.ParseAddr(p.Addr); err == nil {
			s.Peers = append(s.Peers, gossip.Peer{NodeID: p.NodeID, Addr: addr})
		}
	}
	return s
}
