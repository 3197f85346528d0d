package simtest_test

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/manager/endpoints"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// plane is what leads connections on a worker. It outlives the agent.
type plane struct {
	hasty bool // a seeded bug

	mu   sync.Mutex
	last *wire.NetworkView // what it was told
	// follows is what it does; nil while the machine is off.
	follows *wire.NetworkView
}

// set has the plane follow a view, which takes it its time, and now and then a lot of it.
func (p *plane) set(a *agent.Agent, v *wire.NetworkView) {
	p.mu.Lock()
	p.last = v
	p.mu.Unlock()
	delay := time.Duration(rand.N(400)) * time.Millisecond
	if rand.IntN(20) == 0 {
		delay = 4 * time.Second
	}
	if p.hasty {
		a.Programmed(wire.Programmed{Networks: v.Version})
	}
	time.AfterFunc(delay, func() { a.Programmed(wire.Programmed{Networks: p.program()}) })
}

// program follows what was told last.
func (p *plane) program() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.follows = p.last; p.last == nil {
		return 0
	}
	return p.last.Version
}

// clear is for a machine that is off.
func (p *plane) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.follows = nil, nil
}

// leads tells whether connections are led to a task from here: from containers on
// a network of it that run, or by the routing mesh.
func (p *plane) leads(node, task string, runs func(task string) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.follows == nil {
		return false
	}
	for _, n := range p.follows.Networks {
		if n.Endpoints[task].State != wire.EndpointActive {
			continue
		}
		for _, e := range n.Endpoints {
			if n.Ingress || e.Node == node && runs(e.ID) {
				return true
			}
		}
	}
	return false
}

// intents is what managers that led have stored.
type intents struct {
	mu    sync.Mutex
	last  *store.Snapshot
	stops map[string]time.Time // since when each task is to stop
	down  map[string]time.Time // when each node was last down
}

// note takes in a state that is in force.
func (i *intents) note(snap *store.Snapshot) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last != nil && i.last.Index >= snap.Index {
		return
	}
	i.last = snap
	if i.stops == nil {
		i.stops, i.down = map[string]time.Time{}, map[string]time.Time{}
	}
	for t := range snap.Tasks.All() {
		if _, known := i.stops[t.ID]; !known && object.Rank(t.DesiredState) >= object.Rank(swarm.TaskStateShutdown) {
			i.stops[t.ID] = time.Now()
		}
	}
	for n := range snap.Nodes.All() {
		if n.Status.State == swarm.NodeStateDown {
			i.down[n.ID] = time.Now()
		}
	}
}

func (i *intents) removed(node string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, there := i.last.Nodes.Get(node)
	return !there
}

// runs tells whether a task is not over, as far as is known.
func (i *intents) runs(task string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	t, there := i.last.Tasks.Get(task)
	return there && !object.Over(t)
}

// waits tells whether a task that is to stop runs on for a node, and since when it is to.
func (i *intents) waits(task, node string) (since time.Time, waits bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	since, stops := i.stops[task]
	n, there := i.last.Nodes.Get(node)
	switch {
	case !there || n.Status.State == swarm.NodeStateDown:
		return since, false
	case !stops:
		return time.Now(), true
	}
	return since, !i.down[node].After(since) && time.Since(since) < endpoints.Patience
}

// stopped checks, when an agent is about to end what runs, that nobody leads
// connections to it, or was waited for long enough.
func (s *swarmed) stopped(by *worker, task string) {
	for i := range s.cluster.Size() {
		if m := s.cluster.Member(i); m != nil {
			s.intents.note(m.Snapshot())
		}
	}
	if s.intents.removed(by.node()) {
		return // it stops all that it has
	}
	for _, w := range s.workers {
		if !w.plane.leads(w.node(), task, s.intents.runs) {
			continue
		}
		if since, waits := s.intents.waits(task, w.node()); waits {
			s.trace.Violate("%s stops task %s %v after it is to, and %s leads connections to it", by.node(), task, time.Since(since), w.node())
		}
	}
}
