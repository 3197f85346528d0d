package dispatcher

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// item names what a node can be sent.
type item struct {
	kind object.Kind
	key  string
}

// sent is what a node was sent in a session.
type sent struct {
	// items holds a stamp for each object: if it is another one, the object
	// has changed in a way that concerns the node.
	items map[item]int
	count uint64            // sets so far
	swarm [sha256.Size]byte // of what it was told of the swarm
	nodes uint64            // how much of the roster
	// tunnels is of the keys of encrypted networks that it was told.
	tunnels [sha256.Size]byte
	// networks are the parts of a set of which some were sent; slack ends when the
	// node need not have programmed the last set to be sent another.
	networks []*wire.Networks
	slack    *time.Timer
}

// next is the next set of assignments for the node, or nil if nothing changed.
// The first is complete. held tells which tasks that are to stop run on for now.
func (s *sent) next(snap *store.Snapshot, node string, held func(task string) bool) (*wire.Assignments, error) {
	want := needs(snap, node, held)
	set := &wire.Assignments{Complete: s.count == 0}
	for i := range s.items {
		if _, ok := want[i]; !ok {
			set.Items = append(set.Items, wire.Item{Kind: i.kind, Key: i.key})
		}
	}
	stamps := make(map[item]int, len(want))
	for i, w := range want {
		stamps[i] = w.stamp
		if stamp, ok := s.items[i]; ok && stamp == w.stamp {
			continue
		}
		packed, err := wire.Pack(w.object)
		if err != nil {
			return nil, err
		}
		set.Items = append(set.Items, packed)
	}
	if len(set.Items) == 0 && !set.Complete {
		return nil, nil
	}
	slices.SortFunc(set.Items, func(a, b wire.Item) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key)) })
	if s.count > 0 {
		set.AppliesTo = version(s.count)
	}
	s.count++
	set.ResultsIn = version(s.count)
	s.items = stamps
	return set, nil
}

type need struct {
	object object.Object
	stamp  int
}

// needs is what a node is to have: its tasks and what they refer to. Of a task
// only the desired state ever changes for the node; the rest never does.
func needs(snap *store.Snapshot, node string, held func(task string) bool) map[item]need {
	want := map[item]need{}
	add := func(o object.Object, stamp int) { want[item{o.Kind(), o.Key()}] = need{o, stamp} }
	for t := range snap.Tasks.By(store.ByNode, node) {
		if object.Rank(t.Status.State) < object.Rank(swarm.TaskStateAssigned) {
			continue
		}
		if object.Ended(t.DesiredState) && held(t.ID) {
			t = t.Clone().(*object.Task)
			t.DesiredState = swarm.TaskStateRunning
		}
		add(t, object.Rank(t.DesiredState))
		rev := snap.Revision(t.ServiceID, t.SpecVersion)
		if rev == nil {
			continue
		}
		add(rev, 1)
		// A task that is over needs its secrets no more.
		if c := rev.Spec.ContainerSpec; c != nil && !object.Ended(t.Status.State) && !object.Ended(t.DesiredState) {
			for _, ref := range c.Secrets {
				if s, ok := snap.Secrets.Get(ref.SecretID); ok {
					add(s, 1)
				}
			}
			for _, ref := range c.Configs {
				if s, ok := snap.Configs.Get(ref.ConfigID); ok {
					add(s, 1)
				}
			}
		}
	}
	return want
}
