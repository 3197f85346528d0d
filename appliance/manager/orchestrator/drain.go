package orchestrator

import (
	"math"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/updater"
)

// A node that is drained loses its tasks as a service that is updated does: with
// start-first each of them serves until its replacement runs, and no more slots
// move at once than the update configuration says. Without an update
// configuration all move at once.

const (
	// evacuation is how long a drained node keeps a task whose replacement does
	// not come to run: a node that is drained is to be empty some day.
	evacuation = 10 * time.Minute
	// orphaned is how long a node has to be down for its tasks to be given up.
	orphaned = 24 * time.Hour
)

// eviction is what becomes of a task on a drained node.
type eviction int

const (
	stops    eviction = iota
	stays             // until other slots have moved
	overlaps          // until its replacement runs
)

// count notes how many more slots may move.
func (r *round) count(slots []*slot) {
	r.room = math.MaxInt
	if c := r.svc.Spec.UpdateConfig; c == nil || c.Parallelism == 0 {
		return
	}
	r.room = int(min(updater.Config(r.svc).Parallelism, math.MaxInt32))
	for _, s := range slots {
		if !s.leaving && r.moves(s) {
			r.room--
		}
	}
}

// moves reports whether a slot has a task on its way to run, and for no longer
// than others wait for it.
func (r *round) moves(s *slot) bool {
	for _, a := range s.attempts {
		if !a.wanted() || a.Status.State == swarm.TaskStateRunning {
			continue
		}
		if until := a.CreatedAt.Add(evacuation); until.After(r.now) {
			r.next = loop.Earliest(r.next, until)
			return true
		}
	}
	return false
}

// evict decides on a task whose node is drained.
func (r *round) evict(s *slot, a *attempt) eviction {
	if a.Status.State != swarm.TaskStateRunning {
		return stops // nobody misses it
	}
	then := stops
	if r.startFirst() {
		then = overlaps
	}
	next := s.after(a)
	if next == nil {
		if r.room <= 0 {
			return stays
		}
		r.room--
		return then
	}
	until := next.CreatedAt.Add(evacuation)
	if !until.After(r.now) {
		return stops
	}
	if then == overlaps {
		r.next = loop.Earliest(r.next, until)
	}
	return then
}

// after is the first attempt that was made after another.
func (s *slot) after(a *attempt) *attempt {
	for i, o := range s.attempts {
		if o == a && i+1 < len(s.attempts) {
			return s.attempts[i+1]
		}
	}
	return nil
}
