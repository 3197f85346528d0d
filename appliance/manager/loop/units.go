package loop

import (
	"maps"
	"slices"
	"time"

	"skep/store"
	"skep/store/object"
)

// Unit decides on the changes for one unit of work, for example one service.
type Unit func(snap *store.Snapshot, id string, now time.Time) (c Changes, next time.Time)

// Each is a Plan that calls unit for the units of work that find names, and
// for those whose time has come, in the order of their IDs.
func Each(find func(prev *store.Snapshot, ch store.Changes) []string, unit Unit) Plan {
	due := map[string]time.Time{}
	return func(prev *store.Snapshot, ch store.Changes, now time.Time) (Changes, time.Time) {
		ids := find(prev, ch)
		for id, at := range due {
			if !at.After(now) {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		var all Changes
		for _, id := range slices.Compact(ids) {
			c, next := unit(ch.Snapshot, id, now)
			all.Add(c)
			if !c.Empty() {
				next = now // what was decided may not come to pass: look again
			}
			if next.IsZero() {
				delete(due, id)
				continue
			}
			due[id] = next
		}
		var next time.Time
		for _, at := range due {
			next = Earliest(next, at)
		}
		return all, next
	}
}

// Services names the services that the changes concern: they, their tasks, a
// node that has tasks of theirs or could have, or the cluster changed.
func Services(prev *store.Snapshot, ch store.Changes) []string {
	ids := map[string]bool{}
	every := ch.All
	for _, k := range ch.Keys {
		switch k.Kind {
		case object.KindService:
			ids[k.ID] = true
		case object.KindTask:
			if t, ok := ch.Snapshot.Tasks.Get(k.ID); ok {
				ids[t.ServiceID] = true
			} else if prev != nil {
				if t, ok := prev.Tasks.Get(k.ID); ok {
					ids[t.ServiceID] = true
				}
			}
		case object.KindNode:
			for t := range ch.Snapshot.Tasks.By(store.ByNode, k.ID) {
				ids[t.ServiceID] = true
			}
			for s := range ch.Snapshot.Services.All() {
				if s.Spec.Mode.Global != nil {
					ids[s.ID] = true
				}
			}
		case object.KindCluster:
			every = true
		default:
		}
	}
	if every {
		for s := range ch.Snapshot.Services.All() {
			ids[s.ID] = true
		}
		// What is left of services that are no more concerns the loops too.
		for t := range ch.Snapshot.Tasks.All() {
			ids[t.ServiceID] = true
		}
		for r := range ch.Snapshot.Revisions.All() {
			ids[r.ServiceID] = true
		}
	}
	return slices.Collect(maps.Keys(ids))
}
