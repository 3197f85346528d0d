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
// A stop waits for the nodes that may lead connections to its task, until they
// have programmed that it drains, are down, or [Patience] is over. A node goes on
// as it was told last while it has no session, and nobody knows what it was told
// before this manager led.
type Audience struct {
	board   *Board
	cursors map[string]*Cursor // by node
	// told is up to which version each node was told in sessions that are over;
	// all may have been told what there was when following began.
	told   map[string]uint64
	began  uint64
	drains drains
}

// Turn is what a step came to.
type Turn struct {
	// All nodes, or Nodes, are to be told something by Since.
	All   bool
	Nodes map[string]bool
	// Released are the stops that wait no more.
	Released []Stop
	// Late are the nodes that stops waited for no longer, in order: they may lead
	// connections to what stops.
	Late []string
	// Next is when to call again at the latest; zero is never.
	Next    time.Time
	Refused []error // see [News]
}

// NewAudience is one of nobody, of an empty board.
func NewAudience() *Audience {
	return &Audience{board: NewBoard(), cursors: map[string]*Cursor{}, told: map[string]uint64{}, drains: newDrains()}
}

// Follow takes in what changed, and ends what waited for too long.
func (a *Audience) Follow(ch store.Changes, now time.Time) Turn {
	n := a.board.Follow(ch)
	if a.began == 0 {
		a.began = a.board.version
	}
	t := Turn{All: n.All, Nodes: n.Nodes, Refused: n.Refused}
	for _, node := range n.Lost {
		t.Released = append(t.Released, a.drains.forget(node)...)
	}
	a.hold(n.Stops, now)
	released, late, next := a.drains.expire(now)
	t.Released, t.Late, t.Next = append(t.Released, released...), late, next
	return t
}

// hold has stops wait for who may lead to their tasks. Most have the same nodes.
func (a *Audience) hold(stops []Stop, now time.Time) {
	slices.SortFunc(stops, func(x, y Stop) int { return strings.Compare(x.Task, y.Task) })
	waves := map[string][]Stop{}
	for _, s := range stops {
		by := fmt.Sprintf("%020d %s", s.Drained, strings.Join(s.Networks, " "))
		waves[by] = append(waves[by], s)
	}
	for _, by := range slices.Sorted(maps.Keys(waves)) {
		a.holdWave(waves[by], now)
	}
}

// holdWave has stops that drain on the same networks since the same version wait
// for the nodes that may lead to them. A node that is behind may do so to some only.
func (a *Audience) holdWave(stops []Stop, now time.Time) {
	var all []string
	behind := map[string]uint64{} // up to which version they know
	newest := slices.MaxFunc(stops, func(x, y Stop) int { return cmp.Compare(x.Active, y.Active) }).Active
	for _, node := range a.board.interested(stops[0].Networks) {
		switch reach, may := a.reach(node, stops[0]); {
		case !may:
		case reach >= newest:
			all = append(all, node)
		default:
			behind[node] = reach
		}
	}
	if len(behind) == 0 {
		a.drains.begin(stops[0].Drained, now, stops, all)
		return
	}
	for _, s := range stops {
		nodes := slices.Clone(all)
		for node, reach := range behind {
			if reach >= s.Active {
				nodes = append(nodes, node)
			}
		}
		a.drains.begin(s.Drained, now, []Stop{s}, nodes)
	}
}

// reach is up to which version a node was told of tasks that it may lead to; it
// does not lead to one that stops if it knows that it drains, or nothing of its networks.
func (a *Audience) reach(node string, s Stop) (version uint64, may bool) {
	c := a.cursors[node]
	if c == nil || c.acked == 0 { // it still does as it was told in another session
		version = max(a.began, a.told[node])
		if c != nil {
			version = max(version, c.version)
		}
		return version, true
	}
	return c.version, c.acked < s.Drained && slices.ContainsFunc(s.Networks, func(id string) bool { return c.knows(a.board, id) })
}

// Join adds a node's session, which takes the place of the one before.
func (a *Audience) Join(node string) *Cursor {
	if old := a.cursors[node]; old != nil {
		a.Leave(node, old)
	}
	c := new(Cursor)
	a.cursors[node] = c
	return c
}

// Leave takes a session out, if another one has not taken its place.
func (a *Audience) Leave(node string, c *Cursor) {
	if a.cursors[node] == c {
		a.told[node] = max(a.told[node], c.version)
		delete(a.cursors, node)
	}
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
