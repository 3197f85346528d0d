package scheduler

import (
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// member is a node and what its tasks take of it.
type member struct {
	node     *object.Node
	free     Resources
	ports    map[hostPort]int
	active   map[string]int // tasks that are to run, by service
	total    int            // tasks that are to run
	failures map[group][]time.Time
}

// mirror is what the scheduler knows of a snapshot, kept up to date from what
// changed.
//
// Invariant: it depends only on the snapshot and on the assignments of the last
// plan, but for the failures, which count what this mirror has seen.
type mirror struct {
	members map[string]*member
	order   []*member               // by node ID
	tasks   map[string]*object.Task // as they are accounted for
	demands map[group]*demand
	waiting map[group]map[string]*object.Task
	// stuck are the groups that found no place; they are tried again when
	// something is freed.
	stuck map[group]bool
}

func newMirror(s *store.Snapshot, now time.Time) *mirror {
	m := &mirror{
		members: make(map[string]*member, s.Nodes.Len()),
		tasks:   make(map[string]*object.Task, s.Tasks.Len()),
		demands: map[group]*demand{},
		waiting: map[group]map[string]*object.Task{},
		stuck:   map[group]bool{},
	}
	for n := range s.Nodes.All() {
		m.setNode(s, n.ID)
	}
	for t := range s.Tasks.All() {
		m.setTask(s, t.ID, t, now)
	}
	return m
}

// follow takes in what changed. Tasks come first: what a node has to bear is
// counted anew from the snapshot's tasks, which must be those of the mirror.
func (m *mirror) follow(s *store.Snapshot, keys []store.Key, now time.Time) {
	defer func() {
		for _, k := range keys {
			if k.Kind == object.KindNode {
				m.setNode(s, k.ID)
			}
		}
	}()
	for _, k := range keys {
		switch k.Kind {
		case object.KindTask:
			t, _ := s.Tasks.Get(k.ID)
			m.setTask(s, k.ID, t, now)
		case object.KindRevision:
			if r, ok := s.Revisions.Get(k.ID); !ok || r == nil {
				service, _, _ := strings.Cut(k.ID, "/")
				for g := range m.demands {
					if g.service == service && s.Revision(service, swarm.Version{Index: g.version}) == nil && m.waiting[g] == nil {
						delete(m.demands, g)
					}
				}
			}
		default:
		}
	}
}

func (m *mirror) setNode(s *store.Snapshot, id string) {
	clear(m.stuck)
	n, ok := s.Nodes.Get(id)
	old := m.members[id]
	at, found := slices.BinarySearchFunc(m.order, id, func(n *member, id string) int { return strings.Compare(n.node.ID, id) })
	if !ok {
		delete(m.members, id)
		if found {
			m.order = slices.Delete(m.order, at, at+1)
		}
		return
	}
	next := &member{node: n, free: Have(&n.Description.Resources), ports: map[hostPort]int{}, active: map[string]int{}}
	if old != nil {
		next.failures = old.failures
	}
	m.members[id] = next
	if found {
		m.order[at] = next
	} else {
		m.order = slices.Insert(m.order, at, next)
	}
	if old == nil && len(m.tasks) == 0 {
		return // the tasks come after the nodes
	}
	for t := range s.Tasks.By(store.ByNode, id) {
		if a := m.tasks[t.ID]; a != nil && a.NodeID == id {
			m.account(s, a, 1)
		}
	}
}

// holds reports whether a task takes resources of its node.
func holds(t *object.Task) bool {
	return t.NodeID != "" && !object.Ended(t.Status.State) &&
		object.Rank(t.Status.State) >= object.Rank(swarm.TaskStateAssigned)
}

func wanted(t *object.Task) bool {
	return object.Rank(t.DesiredState) <= object.Rank(swarm.TaskStateRunning)
}

func groupOf(t *object.Task) group { return group{t.ServiceID, t.SpecVersion.Index} }

// setTask replaces what is known of a task; nil means that it is gone.
func (m *mirror) setTask(s *store.Snapshot, id string, t *object.Task, now time.Time) {
	old := m.tasks[id]
	if old == t {
		return
	}
	if old != nil {
		m.account(s, old, -1)
		if w := m.waiting[groupOf(old)]; w != nil {
			delete(w, id)
			if len(w) == 0 {
				delete(m.waiting, groupOf(old))
			}
		}
		if holds(old) && (t == nil || !holds(t) || !wanted(t)) {
			clear(m.stuck)
		}
	}
	if t == nil {
		delete(m.tasks, id)
		return
	}
	m.tasks[id] = t
	m.account(s, t, 1)
	if t.Status.State == swarm.TaskStatePending && wanted(t) {
		g := groupOf(t)
		if m.waiting[g] == nil {
			m.waiting[g] = map[string]*object.Task{}
		}
		m.waiting[g][id] = t
		if old == nil || old.Status.State != swarm.TaskStatePending {
			delete(m.stuck, g)
		}
	}
	if n := m.members[t.NodeID]; n != nil && failed(t) && (old == nil || !failed(old)) {
		if at := time.Unix(0, t.AppliedAt); now.Sub(at) < recent {
			if n.failures == nil {
				n.failures = map[group][]time.Time{}
			}
			g := groupOf(t)
			n.failures[g] = append(slices.DeleteFunc(n.failures[g], func(at time.Time) bool { return now.Sub(at) >= recent }), at)
		}
	}
}

func failed(t *object.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

// account adds a task to what its node has to bear, or takes it away.
func (m *mirror) account(s *store.Snapshot, t *object.Task, by int) {
	if !holds(t) {
		return
	}
	n := m.members[t.NodeID]
	if n == nil {
		return
	}
	d := m.demand(s, groupOf(t))
	n.free.Take(&d.reserved, int64(by))
	for _, p := range d.ports {
		n.ports[p] += by
	}
	if wanted(t) {
		n.active[t.ServiceID] += by
		n.total += by
	}
}

func (m *mirror) demand(s *store.Snapshot, g group) *demand {
	d := m.demands[g]
	if d == nil {
		d = newDemand(s.Revision(g.service, swarm.Version{Index: g.version}))
		m.demands[g] = d
	}
	return d
}
