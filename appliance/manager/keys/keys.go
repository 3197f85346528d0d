// Package keys makes the keys of the nodes' gossip, while this node leads, and
// changes them: regularly, and at once when a node that held them was removed or
// demoted.
//
// A change is three steps in the store ([object.GossipKeys]): the new key is
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

// Run changes the keys until ctx ends or the store fails. acked says whether all
// nodes that have a session have taken over the keys of a version.
func Run(ctx context.Context, s store.Proposer, acked func(version uint64) bool) error {
	return loop.Follow(ctx, s, func(_ *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
		c := ch.Snapshot.Cluster()
		if c == nil {
			return loop.Changes{}, time.Time{}
		}
		fresh := make([]byte, size)
		_, _ = rand.Read(fresh) // which never fails
		keys, at := Plan(c.GossipKeys, now, acked(c.GossipKeys.Version), fresh)
		if keys.Version == c.GossipKeys.Version {
			return loop.Changes{}, at
		}
		c = c.Clone().(*object.Cluster)
		c.GossipKeys = keys
		return loop.Changes{Update: []object.Object{c}}, time.Time{}
	})
}
