package reaper

import (
	"time"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

// PlanNetworks is the [loop.Plan] for what is left on networks: networks that
// were removed go when the last of the tasks that ended on them is gone, guests
// go with their node.
func PlanNetworks(_ *store.Snapshot, ch store.Changes, _ time.Time) (c loop.Changes, next time.Time) {
	snap := ch.Snapshot
	for n := range snap.Networks.All() {
		if n.PendingDelete && !used(snap, n) {
			c.Delete = append(c.Delete, n)
		}
	}
	if ch.All {
		for g := range snap.Guests.All() {
			reapGuest(&c, snap, g)
		}
	}
	for _, k := range ch.Keys {
		switch k.Kind {
		case object.KindGuest:
			if g, ok := snap.Guests.Get(k.ID); ok {
				reapGuest(&c, snap, g)
			}
		case object.KindNode:
			for g := range snap.Guests.By(store.ByNode, k.ID) {
				reapGuest(&c, snap, g)
			}
		default:
		}
	}
	return c, time.Time{}
}

func used(snap *store.Snapshot, n *object.Network) bool {
	for g := range snap.Guests.All() {
		if g.Network.ID == n.ID {
			return true
		}
	}
	return object.OnNetwork(snap.Tasks.All(), n.ID)
}

func reapGuest(c *loop.Changes, snap *store.Snapshot, g *object.Guest) {
	if _, ok := snap.Nodes.Get(g.NodeID); !ok {
		c.Delete = append(c.Delete, g)
	}
}
