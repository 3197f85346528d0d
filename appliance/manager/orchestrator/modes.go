package orchestrator

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/updater"
	"skep/store/object"
)

func (r *round) paused() bool { return updater.Paused(r.svc.UpdateStatus) }

// replicated makes the number of slots what the spec wants.
func (r *round) replicated() {
	want := 1
	if n := r.svc.Spec.Mode.Replicated.Replicas; n != nil {
		want = int(min(*n, 1<<30))
	}
	var slots []*slot
	used := map[int]*slot{}
	for _, s := range r.slots {
		used[s.number] = s
		if !s.leaving {
			slots = append(slots, s)
		}
	}
	if len(slots) > want {
		for _, s := range surplus(slots, want) {
			r.remove(s)
		}
	}
	r.count(slots)
	for _, s := range slots {
		if !s.leaving {
			r.supervise(s)
		}
	}
	number := 0
	for range want - len(slots) {
		s := &slot{}
		for number++; ; number++ {
			if old := used[number]; old == nil {
				s.number = number
				r.slots = append(r.slots, s)
				break
			} else if old.leaving {
				s = old // its tasks are on their way out; the new one waits for them
				s.leaving = false
				break
			}
		}
		r.create(s, r.task(s))
	}
	r.sort()
}

// surplus are the slots that go so that keep are left: first those that do not
// run, then those on the nodes that have the most, the highest numbers first.
func surplus(slots []*slot, keep int) []*slot {
	type ranked struct {
		*slot
		nth int // how many slots of the service its node has before it
	}
	on := map[string]int{}
	list := make([]ranked, len(slots))
	for i, s := range slots {
		list[i] = ranked{slot: s, nth: 1 << 30}
		if !s.running() {
			continue
		}
		for _, a := range s.attempts {
			if a.wanted() && a.Status.State == swarm.TaskStateRunning {
				list[i].nth = on[a.NodeID]
				on[a.NodeID]++
				break
			}
		}
	}
	slices.SortStableFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.nth, b.nth), cmp.Compare(a.number, b.number))
	})
	var out []*slot
	for _, s := range list[keep:] {
		out = append(out, s.slot)
	}
	return out
}

// global makes one slot for each node that is fit.
func (r *round) global() {
	have := map[string]*slot{}
	for _, s := range r.slots {
		have[s.node] = s
	}
	for n := range r.snap.Nodes.All() {
		s := have[n.ID]
		if s == nil {
			s = &slot{node: n.ID}
		} else {
			delete(have, n.ID)
		}
		switch {
		case !r.fit(n):
			s.frozen = true
			for _, a := range s.attempts {
				r.desire(a, swarm.TaskStateShutdown)
			}
		case n.Spec.Availability == swarm.NodeAvailabilityPause || n.Status.State != swarm.NodeStateReady:
			s.frozen = true
		case s.newest() == nil:
			if len(s.attempts) == 0 {
				r.slots = append(r.slots, s)
			}
			s.leaving = false
			r.create(s, r.task(s))
		default:
			r.supervise(s)
		}
	}
	for _, s := range have { // nodes that are no more
		r.remove(s)
	}
	r.sort()
}

// fit reports whether a node is one that the global service is to run on.
func (r *round) fit(n *object.Node) bool {
	return n.Spec.Availability != swarm.NodeAvailabilityDrain &&
		n.Status.State != swarm.NodeStateDown &&
		r.placeable(n)
}

// placeable reports whether the service's placement allows a node.
func (r *round) placeable(n *object.Node) bool {
	p := r.svc.Spec.TaskTemplate.Placement
	if p == nil {
		return true
	}
	return object.Match(r.constraints, n) && (len(p.Platforms) == 0 ||
		slices.ContainsFunc(p.Platforms, func(want swarm.Platform) bool {
			return object.PlatformMatches(want, n.Description.Platform)
		}))
}
