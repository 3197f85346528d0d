package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/restart"
	"skep/appliance/manager/updater"
	"skep/store"
	"skep/store/object"
)

// Plan decides what to write for one service.
func Plan(snap *store.Snapshot, id string, now time.Time) (loop.Changes, time.Time) {
	r := &round{snap: snap, now: now}
	svc, ok := snap.Services.Get(id)
	r.gather(id)
	r.bury()
	switch {
	case !ok || svc.PendingDelete:
		r.removeAll()
		if ok && len(r.slots) == 0 {
			r.changes.Delete = append(r.changes.Delete, svc)
			for rev := range snap.Revisions.By(store.ByService, id) {
				r.changes.Delete = append(r.changes.Delete, rev)
			}
		}
	case svc.Spec.Mode.Replicated != nil:
		r.use(svc)
		r.replicated()
		r.update()
		r.release()
	case svc.Spec.Mode.Global != nil:
		r.use(svc)
		r.global()
		r.update()
		r.release()
	}
	r.collect()
	return r.changes, r.next
}

// round is one decision on one service. Its slots hold the tasks as the
// decision has changed them so far.
type round struct {
	snap        *store.Snapshot
	now         time.Time
	svc         *object.Service
	constraints []object.Constraint
	slots       []*slot // ordered by number, then node
	same        map[uint64]likeness
	room        int // how many more slots may leave drained nodes now
	changes     loop.Changes
	next        time.Time
}

func (r *round) use(svc *object.Service) {
	r.svc = svc
	r.same = map[uint64]likeness{}
	if p := svc.Spec.TaskTemplate.Placement; p != nil {
		// Constraints were checked when the service was accepted; the
		// scheduler explains those that are wrong all the same.
		if cs, err := object.ParseConstraints(p.Constraints); err == nil {
			r.constraints = cs
		}
	}
}

func (r *round) policy() *swarm.RestartPolicy { return r.svc.Spec.TaskTemplate.RestartPolicy }

// removeAll lets go of every task.
func (r *round) removeAll() {
	for _, s := range r.slots {
		r.remove(s)
	}
}

func (r *round) remove(s *slot) {
	s.leaving = true
	for _, a := range s.attempts {
		r.desire(a, swarm.TaskStateRemove)
		// What a lost node may still run it lets go of when it is back: its
		// complete assignments will not hold the task.
		if r.lost(a.NodeID) {
			r.orphan(a)
		}
	}
}

// update takes the service's update one step further.
func (r *round) update() {
	var kept []*slot
	var seen []updater.Slot
	for _, s := range r.slots {
		if s.leaving || s.frozen {
			continue
		}
		r.settle(s)
		kept = append(kept, s)
		seen = append(seen, r.describe(s))
	}
	d := updater.Plan(r.svc, seen, r.now)
	if d.Rollback != "" {
		// The rest waits for the spec that is to be.
		svc, now := r.svc, r.now
		r.slots = nil
		r.changes.Also = append(r.changes.Also, func(tx *store.Tx) { store.RollbackService(tx, svc, true, d.Rollback, now) })
		return
	}
	for _, i := range d.Replace {
		r.change(kept[i])
	}
	if d.Status != nil {
		svc := r.svc.Clone().(*object.Service)
		svc.UpdateStatus = d.Status
		r.changes.Update = append(r.changes.Update, svc)
	}
	r.next = loop.Earliest(r.next, d.Next)
}

func (r *round) describe(s *slot) updater.Slot {
	u := updater.Slot{Dirty: true}
	for _, a := range s.attempts {
		if a.Status.State == swarm.TaskStateRunning && a.wanted() {
			u.Live = true
		}
		if !r.dirty(a.Task) {
			u.New = append(u.New, a.Task)
			if a.wanted() {
				u.Dirty = false
			}
		}
	}
	if newest := s.newest(); newest != nil && !s.wanted() && !r.dirty(newest.Task) {
		u.Dirty = false // it ended, and its policy leaves it at that
	}
	return u
}

// settle lets go of tasks that another task of the slot has taken over from.
func (r *round) settle(s *slot) {
	var heir *attempt
	for _, a := range s.attempts {
		if !a.wanted() || a.moving || r.dirty(a.Task) {
			continue
		}
		if heir == nil || (a.Status.State == swarm.TaskStateRunning && heir.Status.State != swarm.TaskStateRunning) {
			heir = a
		}
	}
	if heir == nil || (r.startFirst() && heir.Status.State != swarm.TaskStateRunning) {
		return
	}
	for _, a := range s.attempts {
		if a != heir && a.wanted() {
			r.desire(a, swarm.TaskStateShutdown)
		}
	}
}

func (r *round) startFirst() bool {
	return updater.Config(r.svc).Order == swarm.UpdateOrderStartFirst
}

// change replaces what a slot runs by the new revision.
func (r *round) change(s *slot) {
	t := r.task(s)
	for _, a := range s.attempts {
		if restart.Died(a.Task) && !r.dirty(a.Task) {
			t.NotBefore = restart.NotBefore(r.policy(), r.now).UnixNano()
		}
	}
	if !r.startFirst() {
		for _, a := range s.attempts {
			r.desire(a, swarm.TaskStateShutdown)
		}
	}
	r.create(s, t)
}

// release lets tasks run that were held at ready.
func (r *round) release() {
	for _, s := range r.slots {
		if s.leaving {
			continue
		}
		for _, a := range s.attempts {
			if a.wanted() && a.DesiredState == swarm.TaskStateReady && r.free(s, a) {
				r.desire(a, swarm.TaskStateRunning)
			}
		}
	}
}

// free reports whether nothing holds back a task of the slot any more.
func (r *round) free(s *slot, a *attempt) bool {
	var before []*object.Task
	for _, b := range s.attempts {
		if b != a && (!r.startFirst() || !b.wanted()) {
			before = append(before, b.Task)
		}
	}
	ok, next := restart.Release(a.Task, before, r.lost, r.now)
	r.next = loop.Earliest(r.next, next)
	return ok
}
