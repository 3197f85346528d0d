package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"skep/appliance/wire"
	"skep/store"
)

// Audience is who is told of a board while a manager leads: a cursor for each
// node that has a session. It belongs to one goroutine at a time.
//
// A stop waits for the nodes that were told to lead connections to its task,
// until they have programmed that it drains, their session ends, or [Patience]
// is over. What a former leader told nobody knows: what drains when the term
// begins waits for all nodes that may have been told.
type Audience struct {
	board   *Board
	cursors map[string]*Cursor // by node
	drains  drains
}

// Turn is what a step came to.
type Turn struct {
	// All nodes, or Nodes, are to be told something by Since.
	All   bool
	Nodes map[string]bool
	// Released are the stops that wait no more.
	Released []Stop
	// Next is when to call again at the latest; zero is never.
	Next    time.Time
	Refused []error // see [News]
}

// NewAudience is one of nobody, of an empty board.
func NewAudience() *Audience {
	return &Audience{board: NewBoard(), cursors: map[string]*Cursor{}, drains: newDrains()}
}

// Follow takes in what changed, and ends what waited for too long.
func (a *Audience) Follow(ch store.Changes, now time.Time) Turn {
	first := a.board.snap == nil
	n := a.board.Follow(ch)
	a.hold(n.Stops, now, first)
	t := Turn{All: n.All, Nodes: n.Nodes, Refused: n.Refused}
	t.Released, t.Next = a.drains.expire(now)
	return t
}

// hold has stops wait for who was told of their tasks. Most have the same nodes.
func (a *Audience) hold(stops []Stop, now time.Time, first bool) {
	slices.SortFunc(stops, func(x, y Stop) int { return strings.Compare(x.Task, y.Task) })
	waves := map[string][]Stop{}
	for _, s := range stops {
		by := fmt.Sprintf("%020d %s", s.Drained, strings.Join(s.Networks, " "))
		waves[by] = append(waves[by], s)
	}
	for _, by := range slices.Sorted(maps.Keys(waves)) {
		stops := waves[by]
		if first {
			a.drains.begin(stops[0].Drained, now, stops, a.board.interested(stops[0].Networks))
			continue
		}
		a.holdTold(stops, now)
	}
}

// holdTold has stops that drain on the same networks since the same version wait
// for the nodes that were told of them. A node that is behind may have been told
// of some only.
func (a *Audience) holdTold(stops []Stop, now time.Time) {
	var all, behind []string // of which some of the tasks are news to the latter
	newest := slices.MaxFunc(stops, func(x, y Stop) int { return cmp.Compare(x.Active, y.Active) }).Active
	for node, c := range a.cursors {
		if c.acked >= stops[0].Drained || !slices.ContainsFunc(stops[0].Networks, func(id string) bool { return c.knows(a.board, id) }) {
			continue
		}
		if c.version < newest {
			behind = append(behind, node)
		} else {
			all = append(all, node)
		}
	}
	if len(behind) == 0 {
		a.drains.begin(stops[0].Drained, now, stops, all)
		return
	}
	for _, s := range stops {
		nodes := slices.Clone(all)
		for _, node := range behind {
			if a.cursors[node].version >= s.Active {
				nodes = append(nodes, node)
			}
		}
		a.drains.begin(s.Drained, now, []Stop{s}, nodes)
	}
}

// Join adds a node's session, which takes the place of the one before.
func (a *Audience) Join(node string) (c *Cursor, released []Stop) {
	if old := a.cursors[node]; old != nil {
		released = a.Leave(node, old)
	}
	c = new(Cursor)
	a.cursors[node] = c
	return c, released
}

// Leave takes a session out, if another one has not taken its place.
func (a *Audience) Leave(node string, c *Cursor) (released []Stop) {
	if a.cursors[node] != c {
		return nil
	}
	delete(a.cursors, node)
	return a.drains.forget(node)
}

// Lost is for a node that is down: nothing waits for it, whether it has a
// session or not.
func (a *Audience) Lost(node string) (released []Stop) {
	if c := a.cursors[node]; c != nil {
		return a.Leave(node, c)
	}
	return a.drains.forget(node)
}

// Since is what the node of a session is to be told: see [Board.Since].
func (a *Audience) Since(node string, c *Cursor) []*wire.Networks {
	return a.board.Since(node, c)
}

// Programmed takes in a node's word that it has programmed a version. What it was
// not told it cannot have programmed. current says that it is as it was told to be.
func (a *Audience) Programmed(node string, c *Cursor, version uint64) (released []Stop, current bool) {
	if a.cursors[node] != c || version > c.version || version < c.acked {
		return nil, false
	}
	c.acked = version
	return a.drains.programmed(node, version), version == c.version
}

// Held tells whether a task's stop waits.
func (a *Audience) Held(task string) bool { return a.drains.held[task] != nil }

// Encrypted are the nodes that a node shares encrypted networks with, in order;
// on tells whether it is on any.
func (a *Audience) Encrypted(node string) (peers []string, on bool) { return a.board.encrypted(node) }
