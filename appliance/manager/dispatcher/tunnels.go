package dispatcher

import (
	"crypto/sha256"

	"skep/appliance/manager/tunnels"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// tellTunnels sends the node the keys of its traffic on encrypted networks, if
// they are not those that it was told last. A node that is on none is told so
// once, if it had keys.
func (t *term) tellTunnels(s *session, sent *sent) error {
	now := t.tunnelsOf(s.node)
	t.mu.Lock()
	had := s.tunnelled
	s.tunnelled = now != nil
	t.mu.Unlock()
	if now == nil {
		if !had {
			return nil
		}
		now = new(wire.Tunnels)
	}
	b, err := object.Encode(now)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	if sent.tunnels == sum {
		return nil
	}
	sent.tunnels = sum
	return s.send(&wire.Message{Tunnels: now})
}

// tunnelsOf are the keys of a node, nil if it is on no encrypted network.
func (t *term) tunnelsOf(node string) *wire.Tunnels {
	t.spread.mu.Lock()
	peers, on := t.spread.audience.Encrypted(node)
	t.spread.mu.Unlock()
	snap := t.spread.followed.Load()
	if !on || snap == nil || snap.Cluster() == nil {
		return nil
	}
	var ends []tunnels.End
	for _, id := range peers {
		ends = append(ends, tunnelEnd(snap, id))
	}
	return tunnels.Of(snap.Cluster().TunnelKeys, tunnelEnd(snap, node), ends)
}

// tunnelEnd is a node as the end of tunnels. One that is not known has no address.
func tunnelEnd(snap *store.Snapshot, node string) tunnels.End {
	n, ok := snap.Nodes.Get(node)
	if !ok {
		return tunnels.End{ID: node}
	}
	return tunnels.End{ID: node, Boot: n.Boot, Address: n.DataAddr()}
}
