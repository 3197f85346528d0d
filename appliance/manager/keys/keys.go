// Package keys makes the keys that nodes have in common, while this node leads:
// those of their gossip, and those that the keys of encrypted networks are derived
// from. It changes them regularly, and at once when a node that held them was
// removed or demoted.
//
// A change is three steps in the store ([object.KeyRing]): the new key is
// added, and when all nodes that can be reached have it, or after a while, it is
// used, and after another while the old ones are removed. So no two nodes that
// follow fail to understand each other, and whichever manager leads goes on where
// the last one stopped: times are the store's and do not start anew.
//
// The keys reach the nodes over their sessions, by the dispatcher, and in no
// other way. What the nodes do with them is not known here.
package keys

import (
	"context"
	"crypto/rand"
	"time"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

// size is that of a key: AES-256.
const size = 32

// Acked says whether all nodes that have a session have taken over the keys of a
// version.
type Acked func(version uint64) bool

// Run changes the keys until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer, gossip, tunnels Acked) error {
	return loop.Follow(ctx, s, func(_ *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
		c := ch.Snapshot.Cluster()
		if c == nil {
			return loop.Changes{}, time.Time{}
		}
		g, atGossip := Plan(c.GossipKeys, now, gossip(c.GossipKeys.Version), fresh())
		t, atTunnels := Plan(c.TunnelKeys, now, tunnels(c.TunnelKeys.Version), fresh())
		at := loop.Earliest(atGossip, atTunnels)
		if g.Version == c.GossipKeys.Version && t.Version == c.TunnelKeys.Version {
			return loop.Changes{}, at
		}
		c = c.Clone().(*object.Cluster)
		c.GossipKeys, c.TunnelKeys = g, t
		return loop.Changes{Update: []object.Object{c}}, time.Time{}
	})
}

func fresh() []byte {
	key := make([]byte, size)
	_, _ = rand.Read(key) // which never fails
	return key
}
