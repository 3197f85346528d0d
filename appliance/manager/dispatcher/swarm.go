package dispatcher

import (
	"crypto/sha256"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// news is what the node is to know of the swarm, nil if it knows it.
func (s *sent) news(snap *store.Snapshot, managers []wire.Peer, node string) (*wire.Swarm, error) {
	n, ok := snap.Nodes.Get(node)
	if !ok {
		return nil, nil
	}
	now := about(snap, n)
	now.Managers = managers
	b, err := object.Encode(now)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	if s.swarm == sum {
		return nil, nil
	}
	s.swarm = sum
	return &now, nil
}

// about is the swarm as one of its nodes is to know it.
func about(snap *store.Snapshot, n *object.Node) wire.Swarm {
	var sw wire.Swarm
	sw.Roots, sw.Role, sw.Renew = ca.Swarm(snap, n)
	if c := snap.Cluster(); c != nil {
		sw.Epoch, sw.DataPathPort = c.Epoch, c.DataPathPort
		sw.GossipVersion, sw.GossipKeys = c.GossipKeys.Version, c.GossipKeys.Keys
	}
	return sw
}

// managers are the peers of all nodes, in the order of their IDs.
func managers(snap *store.Snapshot) *[]wire.Peer {
	var out []wire.Peer
	for n := range snap.Nodes.All() {
		if p := peer(snap, n.ID); p != nil {
			out = append(out, *p)
		}
	}
	return &out
}

// peer is how a manager is reached, nil if the node is none: a replica of which
// it is known, and that is to remain one.
func peer(snap *store.Snapshot, node string) *wire.Peer {
	n, ok := snap.Nodes.Get(node)
	if !ok || n.Spec.Role != swarm.NodeRoleManager || n.ManagerStatus == nil ||
		n.ManagerStatus.Addr == "" || n.ManagerStatus.Reachability == "" {
		return nil
	}
	return &wire.Peer{NodeID: n.ID, Addr: n.ManagerStatus.Addr}
}

func same(a, b *wire.Peer) bool { return a == b || a != nil && b != nil && *a == *b }
