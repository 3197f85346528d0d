// Package allocator gives out what must not be given twice: the subnets and
// numbers of networks, the virtual addresses and published ports of services,
// the addresses of tasks and guests, the slots of nodes in the routing mesh. A
// new task passes on to the scheduler when it has all that it needs.
//
// What is allocated is what the objects in the store say: there is nothing to
// leak and nothing to rebuild. A task holds its addresses until its node says
// that it ended, or until it is gone; whatever is desired of it. What the loop
// keeps from round to round is only a sum of that ([ledger]), and how long
// addresses that were let go have rested.
//
// What cannot be had is written where the user looks: on the network, the
// guest, or the task, which stays new until there is enough for it.
package allocator

import (
	"context"
	"slices"
	"time"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

// Run allocates until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error { return loop.Follow(ctx, s, New().Plan) }

// Allocator decides, for as long as its manager leads. It belongs to one goroutine.
type Allocator struct {
	ledger *ledger
	// waiting are the services and guests that something could not be had for, or
	// that are yet to be seen with what they were given.
	waiting map[store.Key]bool
	// again: one that waited was given something in the last round, which may never
	// be written.
	again bool
	// due is when an address for one of them ends its rest.
	due time.Time
}

// New is an allocator that knows nothing yet.
func New() *Allocator { return &Allocator{waiting: map[store.Key]bool{}} }

// round is one decision.
type round struct {
	*Allocator
	snap    *store.Snapshot
	now     time.Time
	changes loop.Changes
	ports   *ports           // made at first use
	mesh    *string          // as is this: the ingress network's ID
	sites   map[string]*site // by network, as far as they were looked at
	// networks are those that got something in this round.
	networks map[string]*object.Network
}

// Plan is the allocator's [loop.Plan].
func (a *Allocator) Plan(prev *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
	ch.All = ch.All || a.ledger == nil
	freed := a.follow(ch, now)
	r := &round{
		Allocator: a, snap: ch.Snapshot, now: now,
		sites: map[string]*site{}, networks: map[string]*object.Network{},
	}
	news := kinds(ch)
	if news[object.KindNetwork] || news[object.KindCluster] {
		r.allocateNetworks()
	}
	if news[object.KindNode] {
		r.allocateSlots()
	}
	services, guests := loop.Services(prev, ch), changed(ch, object.KindGuest)
	if freed || a.again || news[object.KindNetwork] || news[object.KindService] || (!a.due.IsZero() && !now.Before(a.due)) {
		// There may be enough for those that wait.
		a.due, a.again = time.Time{}, false
		for k := range a.waiting {
			if k.Kind == object.KindGuest {
				guests = append(guests, k.ID)
			} else {
				services = append(services, k.ID)
			}
		}
	}
	r.allocateServices(services)
	r.allocateGuests(guests)
	return r.changes, a.due
}

// follow brings the ledger up to date, and reports whether something was let go.
func (a *Allocator) follow(ch store.Changes, now time.Time) (freed bool) {
	if a.ledger == nil {
		a.ledger = newLedger()
	}
	a.ledger.undo(0)
	if ch.All {
		return a.ledger.rebuild(ch.Snapshot, now)
	}
	return a.ledger.follow(ch, now)
}

// kinds are those of which something changed.
func kinds(ch store.Changes) map[object.Kind]bool {
	out := map[object.Kind]bool{}
	for _, k := range ch.Keys {
		out[k.Kind] = true
	}
	if ch.All {
		for _, k := range []object.Kind{object.KindCluster, object.KindNetwork, object.KindNode, object.KindService} {
			out[k] = true
		}
	}
	return out
}

// changed are the IDs of the objects of a kind to be looked at.
func changed(ch store.Changes, kind object.Kind) (ids []string) {
	for _, k := range ch.Keys {
		if k.Kind == kind {
			ids = append(ids, k.ID)
		}
	}
	if ch.All && kind == object.KindGuest {
		for g := range ch.Snapshot.Guests.All() {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// wait notes that something could not be had for an object, or that it was
// given something; if neither, it has all.
func (r *round) wait(k store.Key, waits, given bool) {
	if !waits && !given {
		delete(r.waiting, k)
		return
	}
	r.again = r.again || given && r.waiting[k]
	r.waiting[k] = true
}

// unique sorts IDs and drops those that are there twice.
func unique(ids []string) []string {
	slices.Sort(ids)
	return slices.Compact(ids)
}
