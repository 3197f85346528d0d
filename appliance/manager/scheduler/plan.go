package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
)

// Scheduler decides where tasks run. It remembers what it has seen of the
// state, so that its work is in proportion to what changed.
type Scheduler struct {
	mirror *mirror
	// placed are the tasks of the last plan: the mirror has them where they
	// were planned to be, until the store says where they are.
	placed []string
}

// Plan is the scheduler's [loop.Plan].
func (s *Scheduler) Plan(_ *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
	if ch.All || s.mirror == nil {
		s.mirror = newMirror(ch.Snapshot, now)
	} else {
		for _, id := range s.placed {
			t, _ := ch.Snapshot.Tasks.Get(id)
			s.mirror.setTask(ch.Snapshot, id, t, now)
		}
		s.mirror.follow(ch.Snapshot, ch.Keys, now)
	}
	s.placed = s.placed[:0]
	var c loop.Changes
	for _, g := range slices.SortedFunc(maps.Keys(s.mirror.waiting), func(a, b group) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.version, b.version))
	}) {
		if !s.mirror.stuck[g] {
			s.place(ch.Snapshot, g, now, &c)
		}
	}
	return c, time.Time{}
}

// place finds places for the tasks of a group that wait for one.
func (s *Scheduler) place(snap *store.Snapshot, g group, now time.Time, c *loop.Changes) {
	m := s.mirror
	d := m.demand(snap, g)
	var tree *branch
	var why tally
	dynamic := d.changes()
	for _, t := range slices.SortedFunc(maps.Values(m.waiting[g]), compareTasks) {
		if t.NodeID != "" {
			s.confirm(snap, t, d, now, c)
			continue
		}
		if tree == nil {
			tree = m.grow(g, d, &why, now)
		}
		n := tree.pick(&why, func(n *member) filter {
			if dynamic {
				return d.check(n, g)
			}
			return fit
		})
		if n == nil {
			m.stuck[g] = true
			s.refuse(t, why.explain(), now, c)
			continue
		}
		s.assign(snap, t, n.node.ID, "scheduler assigned task to node", now, c)
	}
}

// confirm assigns a task that was made for one node, if the node is fit.
func (s *Scheduler) confirm(snap *store.Snapshot, t *object.Task, d *demand, now time.Time, c *loop.Changes) {
	n := s.mirror.members[t.NodeID]
	if n == nil {
		return // the orchestrator removes it
	}
	if f := d.check(n, groupOf(t)); f != fit {
		var why tally
		why[f]++
		s.refuse(t, why.explain(), now, c)
		return
	}
	s.assign(snap, t, t.NodeID, "scheduler confirmed task can run on preassigned node", now, c)
}

func (s *Scheduler) assign(snap *store.Snapshot, t *object.Task, node, message string, now time.Time, c *loop.Changes) {
	next := t.Clone().(*object.Task)
	next.NodeID = node
	next.Status = swarm.TaskStatus{Timestamp: now, State: swarm.TaskStateAssigned, Message: message}
	c.Update = append(c.Update, next)
	s.mirror.setTask(snap, t.ID, next, now)
	s.placed = append(s.placed, t.ID)
}

// refuse stores why a task has no place, unless that is known.
func (s *Scheduler) refuse(t *object.Task, why string, now time.Time, c *loop.Changes) {
	if t.Status.Err == why {
		return
	}
	next := t.Clone().(*object.Task)
	next.Status.Timestamp, next.Status.Err = now, why
	c.Update = append(c.Update, next)
}
