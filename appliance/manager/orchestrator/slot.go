package orchestrator

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/restart"
	"skep/store"
	"skep/store/object"
)

// slot is a slot of a replicated service, or a node's place in a global one.
type slot struct {
	number int
	node   string
	// attempts are the slot's tasks, the oldest first.
	attempts []*attempt
	// leaving: all of the slot's tasks are to be removed.
	leaving bool
	// frozen: the slot's node takes no changes now.
	frozen bool
}

// attempt is a task and what the round has made of it.
type attempt struct {
	*object.Task
	created, changed bool
	// moving: it serves on a drained node until its replacement does.
	moving bool
}

// wanted reports whether the task is to run, now or later.
func (a *attempt) wanted() bool {
	return object.Rank(a.DesiredState) <= object.Rank(swarm.TaskStateRunning)
}

func (s *slot) wanted() bool {
	return slices.ContainsFunc(s.attempts, (*attempt).wanted)
}

func (s *slot) running() bool {
	return slices.ContainsFunc(s.attempts, func(a *attempt) bool {
		return a.wanted() && a.Status.State == swarm.TaskStateRunning
	})
}

// newest is the task that was made last and is not to be removed.
func (s *slot) newest() *attempt {
	for _, a := range slices.Backward(s.attempts) {
		if a.DesiredState != swarm.TaskStateRemove {
			return a
		}
	}
	return nil
}

type place struct {
	number int
	node   string
}

// gather sorts the service's tasks into slots.
func (r *round) gather(service string) {
	by := map[place]*slot{}
	for t := range r.snap.Tasks.By(store.ByService, service) {
		p := place{number: t.Slot}
		if t.Slot == 0 {
			p.node = t.NodeID
		}
		s := by[p]
		if s == nil {
			s = &slot{number: p.number, node: p.node, leaving: true}
			by[p] = s
			r.slots = append(r.slots, s)
		}
		s.attempts = append(s.attempts, &attempt{Task: t})
		if t.DesiredState != swarm.TaskStateRemove {
			s.leaving = false
		}
	}
	for _, s := range r.slots {
		s.order()
	}
	r.sort()
}

func (r *round) sort() {
	slices.SortFunc(r.slots, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.node, b.node))
	})
}

// order sorts by time; of tasks made at the same time, a replacement is later
// than what it replaces.
func (s *slot) order() {
	if len(s.attempts) < 2 {
		return
	}
	replaces := map[string]string{}
	for _, a := range s.attempts {
		replaces[a.ID] = a.Replaces
	}
	depth := func(id string) (n int) {
		for ; n <= len(replaces); n++ {
			next, ok := replaces[id]
			if !ok {
				break
			}
			id = next
		}
		return n
	}
	slices.SortFunc(s.attempts, func(a, b *attempt) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(depth(a.ID), depth(b.ID)), cmp.Compare(a.ID, b.ID))
	})
}

// task is a new task for a slot, held at ready.
func (r *round) task(s *slot) *object.Task {
	t := &object.Task{
		ServiceID:    r.svc.ID,
		SpecVersion:  r.svc.SpecVersion,
		Slot:         s.number,
		NodeID:       s.node,
		DesiredState: swarm.TaskStateReady,
		Status:       swarm.TaskStatus{Timestamp: r.now, State: swarm.TaskStateNew, Message: "created"},
	}
	t.CreatedAt = r.now
	if n := s.newest(); n != nil {
		t.Replaces = n.ID
	}
	return t
}

func (r *round) create(s *slot, t *object.Task) {
	s.attempts = append(s.attempts, &attempt{Task: t, created: true})
}

// desire raises a task's desired state. A task that no agent has seen yet is
// stopped on the spot.
func (r *round) desire(a *attempt, state swarm.TaskState) {
	if object.Rank(a.DesiredState) >= object.Rank(state) {
		return
	}
	r.touch(a)
	a.DesiredState = state
	if object.Rank(state) > object.Rank(swarm.TaskStateRunning) &&
		object.Rank(a.Status.State) < object.Rank(swarm.TaskStateAssigned) {
		a.Status = swarm.TaskStatus{Timestamp: r.now, State: swarm.TaskStateShutdown, Message: "shutdown"}
	}
}

// bury ends the tasks of nodes that are no more, or were not heard of for so long
// that nobody counts on them.
func (r *round) bury() {
	for _, s := range r.slots {
		for _, a := range s.attempts {
			if a.NodeID == "" || object.Ended(a.Status.State) || object.Rank(a.Status.State) < object.Rank(swarm.TaskStateAssigned) {
				continue
			}
			n, ok := r.snap.Nodes.Get(a.NodeID)
			if !ok {
				r.orphan(a)
				a.Status.Message = "Task belonged to a node that has been deleted"
				continue
			}
			if n.Status.State != swarm.NodeStateDown || n.StateSince == 0 {
				continue
			}
			if at := time.Unix(0, n.StateSince).Add(orphaned); at.After(r.now) {
				r.next = loop.Earliest(r.next, at)
				continue
			}
			r.orphan(a)
			a.Status.Message = "Task belonged to a node that has been down for " + orphaned.String()
		}
	}
}

// orphan ends a task that no agent will tell of any more.
func (r *round) orphan(a *attempt) {
	if !object.Ended(a.Status.State) {
		r.touch(a)
		a.Status.Timestamp, a.Status.State = r.now, swarm.TaskStateOrphaned
	}
}

func (r *round) touch(a *attempt) {
	if !a.changed && !a.created {
		a.Task = a.Clone().(*object.Task)
		a.changed = true
	}
}

// collect gathers what the round changed.
func (r *round) collect() {
	for _, s := range r.slots {
		for _, a := range s.attempts {
			switch {
			case a.created:
				r.changes.Create = append(r.changes.Create, a.Task)
			case a.changed:
				r.changes.Update = append(r.changes.Update, a.Task)
			}
		}
	}
}

// lost reports whether a node is down or no more.
func (r *round) lost(node string) bool {
	if node == "" {
		return false
	}
	n, ok := r.snap.Nodes.Get(node)
	return !ok || n.Status.State == swarm.NodeStateDown
}

func (r *round) drained(node string) bool {
	n, ok := r.snap.Nodes.Get(node)
	return ok && n.Spec.Availability == swarm.NodeAvailabilityDrain
}

// supervise stops the slot's tasks that ended or lost their node and, if none
// is left, makes the next one as the restart policy says.
func (r *round) supervise(s *slot) {
	ended, waits := r.stopped(s)
	if waits || slices.ContainsFunc(s.attempts, func(a *attempt) bool { return a.wanted() && !a.moving }) {
		return
	}
	switch newest := s.newest(); {
	case ended == nil:
		if newest == nil || (r.dirty(newest.Task) && !r.paused()) {
			return // empty, or the updater's
		}
		ended = newest
	case ended.moving:
		ended = newest // of those that were to replace it
	}
	var tried []*object.Task
	for _, a := range s.attempts {
		if !r.dirty(a.Task) && a.DesiredState != swarm.TaskStateRemove {
			tried = append(tried, a.Task)
		}
	}
	died := restart.Died(ended.Task)
	stopped := s.node != "" && !died // a global service's task whose node is back
	if !stopped && !restart.Allowed(r.policy(), ended.Task, tried) {
		if ended.moving { // nothing will come in its place
			r.desire(ended, swarm.TaskStateShutdown)
		}
		return
	}
	t := r.task(s)
	t.NotBefore = ended.NotBefore
	if died {
		t.NotBefore = restart.NotBefore(r.policy(), r.now).UnixNano()
	}
	r.create(s, t)
}

// stopped stops the slot's tasks that ended or lost their node, and returns the
// last of them, or one that is to be replaced while it runs. The slot waits if
// it has a task on a drained node whose turn has not come.
func (r *round) stopped(s *slot) (ended *attempt, waits bool) {
	for _, a := range s.attempts {
		if !a.wanted() {
			continue
		}
		if !object.Ended(a.Status.State) && !r.lost(a.NodeID) {
			if !r.drained(a.NodeID) {
				continue
			}
			switch r.evict(s, a) {
			case stays:
				waits = true
				continue
			case overlaps:
				a.moving = true
				if ended == nil {
					ended = a
				}
				continue
			case stops:
			}
		}
		if from := time.Unix(0, a.NotBefore); restart.Died(a.Task) && from.After(r.now) {
			// It died while it was held back. What replaces it comes when that
			// is over: else one would follow the other without end.
			r.next = loop.Earliest(r.next, from)
			continue
		}
		r.desire(a, swarm.TaskStateShutdown)
		ended = a
	}
	return ended, waits
}
