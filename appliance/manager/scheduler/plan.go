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

const (
	msgAssigned  = "scheduler assigned task to node"
	msgConfirmed = "scheduler confirmed task can run on preassigned node"
)

// loaded is a node, at a place in the order, with the tasks that it had.
type loaded struct {
	member    *member
	total, at int
}

// Scheduler decides where tasks run. It remembers what it has seen of the
// state, so that its work is in proportion to what changed.
type Scheduler struct {
	mirror *mirror
	// placed are the tasks of the last plan: the mirror has them where they
	// were planned to be, until the store says where they are.
	placed []string
	// idlest holds the nodes by their number of tasks, for one plan. Within a
	// plan that only grows: what an entry says may be too low, never too high.
	idlest heap[loaded]
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
	s.idlest.items = nil
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
	d := s.mirror.demand(snap, g)
	tasks := slices.SortedFunc(maps.Values(s.mirror.waiting[g]), compareTasks)
	free := tasks[:0]
	for _, t := range tasks {
		if t.NodeID != "" {
			s.confirm(snap, t, d, now, c)
			continue
		}
		free = append(free, t)
	}
	if len(free) == 0 {
		return
	}
	if nodes := s.few(g, d, len(free), now); nodes != nil {
		for i, t := range free {
			s.assign(snap, t, nodes[i].node.ID, msgAssigned, now, c)
		}
		return
	}
	s.many(snap, g, d, free, now, c)
}

// many looks at all nodes.
func (s *Scheduler) many(snap *store.Snapshot, g group, d *demand, tasks []*object.Task, now time.Time, c *loop.Changes) {
	var why tally
	tree := s.mirror.grow(g, d, &why, now)
	dynamic := d.changes()
	for _, t := range tasks {
		n := tree.pick(&why, func(n *member) filter {
			if dynamic {
				return d.check(n, g)
			}
			return fit
		})
		if n == nil {
			s.mirror.stuck[g] = true
			s.refuse(t, why.explain(), now, c)
			continue
		}
		s.assign(snap, t, n.node.ID, msgAssigned, now, c)
	}
}

// few finds the best nodes for tasks that are few, without a look at all nodes:
// the idlest that fit and run none of the service. It returns nil if there are
// not enough of them close by, or if there is more to consider.
func (s *Scheduler) few(g group, d *demand, count int, now time.Time) []*member {
	order := s.mirror.order
	if len(d.descriptors) > 0 || count > len(order)/8 {
		return nil
	}
	h := &s.idlest
	if h.items == nil {
		h.less = func(a, b *loaded) bool {
			if a.total != b.total {
				return a.total < b.total
			}
			return a.at < b.at
		}
		h.items = make([]loaded, len(order))
		for i, n := range order {
			h.items[i] = loaded{n, n.total, i}
		}
		h.init()
	}
	var out []*member
	var seen []loaded
	for len(out) < count && len(h.items) > 0 && len(seen) < 4*count+64 {
		top := &h.items[0]
		if top.total != top.member.total {
			top.total = top.member.total
			h.down(0)
			continue
		}
		seen = append(seen, *top)
		if n := top.member; n.active[g.service] == 0 && d.check(n, g) == fit && n.failed(g, now) < flaky {
			out = append(out, n)
		}
		h.pop()
	}
	for _, l := range seen {
		h.push(l)
	}
	if len(out) < count {
		return nil
	}
	return out
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
	s.assign(snap, t, t.NodeID, msgConfirmed, now, c)
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
