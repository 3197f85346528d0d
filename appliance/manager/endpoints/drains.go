package endpoints

import (
	"slices"
	"time"
)

// Patience is how long a stop waits for nodes to cease to lead connections to
// its task: no longer, for a node may be unable to.
const Patience = 2 * time.Second

// drains are the stops that wait, and the nodes that each waits for.
type drains struct {
	held map[string]*wave // by task
	// waves are those under way, in the order of their ends; behind are those that
	// a node was not yet heard of, in the order of their versions.
	waves  []*wave
	behind map[string][]*wave
}

// wave is stops that wait for the same nodes.
type wave struct {
	version uint64 // that the nodes are to have programmed
	end     time.Time
	waiting int // for how many nodes; 0 when it is over
	stops   []Stop
}

func newDrains() drains {
	return drains{held: map[string]*wave{}, behind: map[string][]*wave{}}
}

// begin holds stops until the nodes have programmed a version; times never go back.
func (d *drains) begin(version uint64, now time.Time, stops []Stop, nodes []string) {
	if len(nodes) == 0 {
		return
	}
	w := &wave{version: version, end: now.Add(Patience), waiting: len(nodes), stops: stops}
	for _, s := range stops {
		d.held[s.Task] = w
	}
	for _, n := range nodes {
		waves := d.behind[n]
		i := len(waves)
		for ; i > 0 && waves[i-1].version > version; i-- {
		}
		d.behind[n] = slices.Insert(waves, i, w)
	}
	d.waves = append(d.waves, w)
}

// programmed notes how far a node is, and is what it releases.
func (d *drains) programmed(node string, version uint64) (released []Stop) {
	waves := d.behind[node]
	n := 0
	for ; n < len(waves) && waves[n].version <= version; n++ {
		released = append(released, d.less(waves[n])...)
	}
	if d.behind[node] = waves[n:]; n == len(waves) {
		delete(d.behind, node)
	}
	return released
}

// forget waits for a node no more.
func (d *drains) forget(node string) (released []Stop) {
	for _, w := range d.behind[node] {
		released = append(released, d.less(w)...)
	}
	delete(d.behind, node)
	return released
}

// less has a wave wait for one node less.
func (d *drains) less(w *wave) []Stop {
	if w.waiting == 0 {
		return nil
	}
	if w.waiting--; w.waiting > 0 {
		return nil
	}
	return d.over(w)
}

// over ends a wave.
func (d *drains) over(w *wave) []Stop {
	w.waiting = 0
	for _, s := range w.stops {
		if d.held[s.Task] == w {
			delete(d.held, s.Task)
		}
	}
	return w.stops
}

// waited are the nodes that a wave waits for.
func (d *drains) waited(w *wave) (nodes []string) {
	for node, waves := range d.behind {
		if slices.Contains(waves, w) {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// expire ends the waves whose time is up, and tells which nodes they waited for
// in vain. next is when to call again, zero if nothing waits.
func (d *drains) expire(now time.Time) (released []Stop, late []string, next time.Time) {
	n := 0
	for ; n < len(d.waves); n++ {
		switch w := d.waves[n]; {
		case w.waiting == 0:
			continue
		case w.end.After(now):
			next = w.end
		default:
			late = append(late, d.waited(w)...)
			released = append(released, d.over(w)...)
			continue
		}
		break
	}
	if d.waves = d.waves[n:]; n > 0 && len(d.waves) == 0 {
		d.waves = nil
	}
	slices.Sort(late)
	return released, slices.Compact(late), next
}
