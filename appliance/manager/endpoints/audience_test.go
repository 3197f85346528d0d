package endpoints_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/endpoints"
	"skep/store/object"
)

const (
	running = swarm.TaskStateRunning
	stop    = swarm.TaskStateShutdown
)

// hall is an audience of a world, at a time of its own.
type hall struct {
	*world
	a       *endpoints.Audience
	now     time.Time
	cursors map[string]*endpoints.Cursor
	next    time.Time
	late    []string
}

// newHall has the nodes n1 to n4; n1 runs t1, n2 and n3 run others beside it on
// network a, and n4 something on network b.
func newHall(t *testing.T) *hall {
	t.Helper()
	h := &hall{world: newWorld(t), a: endpoints.NewAudience(), now: time.Unix(1e9, 0), cursors: map[string]*endpoints.Cursor{}}
	for i := range 4 {
		h.put(node(fmt.Sprint("n", i+1), swarm.NodeStateReady))
	}
	h.put(network("a"), network("b"), service("s", "a", "b"), revision("s"),
		task("t1", "s", "n1", running, running, "a"), task("t2", "s", "n2", running, running, "a"),
		task("t3", "s", "n3", running, running, "a"), task("t4", "s", "n4", running, running, "b"))
	return h
}

func names(stops []endpoints.Stop) string {
	var out []string
	for _, s := range stops {
		out = append(out, s.Task+"@"+s.Node)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// follow is what the following releases.
func (h *hall) follow() string {
	ch := h.store.Since(h.after)
	h.after = ch.Snapshot.Index
	turn := h.a.Follow(ch, h.now)
	h.next, h.late = turn.Next, turn.Late
	return names(turn.Released)
}

func (h *hall) join(nodes ...string) {
	for _, n := range nodes {
		h.cursors[n] = h.a.Join(n)
	}
}

// told sends nodes what there is.
func (h *hall) told(nodes ...string) {
	for _, n := range nodes {
		h.a.Since(n, h.cursors[n])
	}
}

// programmed is what the word of nodes releases, that they have programmed all
// up to now.
func (h *hall) programmed(nodes ...string) string {
	var out []endpoints.Stop
	for _, n := range nodes {
		released, _ := h.a.Programmed(n, h.cursors[n], h.after)
		out = append(out, released...)
	}
	return names(out)
}

func (h *hall) desire(id string, desired swarm.TaskState) {
	h.Helper()
	t, _ := h.store.Snapshot().Tasks.Get(id)
	t = t.Clone().(*object.Task)
	t.DesiredState = desired
	h.put(t)
}

func (h *hall) held(want bool, tasks ...string) {
	h.Helper()
	for _, id := range tasks {
		if got := h.a.Held(id); got != want {
			h.Errorf("stop of %s waits: got %v, want %v", id, got, want)
		}
	}
}

func (h *hall) want(what, got, want string) {
	h.Helper()
	if got != want {
		h.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestAudience_HoldsAStopUntilAllWhoWereToldHaveProgrammed(t *testing.T) {
	h := newHall(t)
	h.follow()
	h.join("n1", "n2", "n3", "n4")
	h.told("n1", "n2", "n3", "n4")
	h.desire("t1", stop)
	h.follow()
	h.held(true, "t1")
	h.want("before they are told", h.programmed("n1", "n2", "n3"), "") // it is more than they were sent
	h.told("n1", "n2", "n3")
	h.want("after one", h.programmed("n2"), "")
	h.want("after the same again", h.programmed("n2"), "")
	h.want("after another", h.programmed("n1"), "")
	h.held(true, "t1")
	h.want("after the last", h.programmed("n3"), "t1@n1") // n4 was never told
	h.held(false, "t1")
}

func TestAudience_HoldsNoStopForLongerThanItsPatience(t *testing.T) {
	h := newHall(t)
	h.follow()
	h.join("n1", "n2", "n3")
	h.told("n1", "n2", "n3")
	h.desire("t1", stop)
	h.follow()
	h.now = h.now.Add(time.Second)
	h.desire("t2", stop)
	h.want("after a second", h.follow(), "")
	if wait := h.next.Sub(h.now); wait != time.Second {
		t.Errorf("to be called in %v, want a second", wait)
	}
	h.now = h.now.Add(time.Second)
	h.told("n2")
	h.want("after one of them", h.programmed("n2"), "")
	h.want("after two seconds", h.follow(), "t1@n1")
	if !slices.Equal(h.late, []string{"n1", "n3"}) {
		t.Errorf("it waited in vain for %v", h.late)
	}
	h.held(true, "t2")
	h.told("n1", "n2", "n3")
	h.want("what is over is over", h.programmed("n1", "n2", "n3"), "t2@n2")
	h.now = h.now.Add(time.Hour)
	h.want("an hour later", h.follow(), "")
	if !h.next.IsZero() {
		t.Errorf("to be called at %v, and nothing waits", h.next)
	}
}

// A node that has no session leads where it did; one that is down does not count.
func TestAudience_HoldsAStopWhileANodeHas(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(h *hall) string // what it releases
		want string
	}{
		{"no session", func(h *hall) string {
			h.a.Leave("n3", h.cursors["n3"])
			return h.follow()
		}, ""},
		{"another session", func(h *hall) string {
			h.join("n3")
			return h.programmed("n3") // which it was not told there
		}, ""},
		{"programmed it in another session", func(h *hall) string {
			old := h.cursors["n3"]
			h.join("n3")
			h.a.Leave("n3", old)
			h.told("n3")
			return h.programmed("n3")
		}, "t1@n1"},
		{"gone down", func(h *hall) string {
			h.put(node("n3", swarm.NodeStateDown))
			return h.follow()
		}, "t1@n1"},
		{"been removed", func(h *hall) string {
			h.remove(object.KindNode, "n3")
			return h.follow()
		}, "t1@n1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHall(t)
			h.follow()
			h.join("n1", "n2", "n3", "n4")
			h.told("n1", "n2", "n3", "n4")
			h.desire("t1", stop)
			h.follow()
			h.told("n1", "n2", "n3", "n4")
			h.programmed("n1", "n2")
			h.want("released", test.do(h), test.want)
			h.held(test.want == "", "t1")
		})
	}
}

// A task whose node was down when it was to stop, and came back, is not stopped
// before those who led there know.
func TestAudience_HoldsTheStopOnANodeThatComesBack(t *testing.T) {
	h := newHall(t)
	h.follow()
	h.join("n2", "n3")
	h.told("n2", "n3")
	h.put(node("n1", swarm.NodeStateDown))
	h.follow()
	h.told("n2", "n3")
	h.programmed("n2")
	h.desire("t1", stop)
	h.follow()
	h.put(node("n1", swarm.NodeStateReady))
	h.follow()
	h.join("n1")
	h.held(true, "t1")
	h.told("n3")
	h.want("after the last who was told", h.programmed("n3"), "t1@n1")
}

// Who has no session when a task is to stop, or is told nothing yet in a new one,
// leads as it was told before.
func TestAudience_HoldsAStopForWhoWasToldBefore(t *testing.T) {
	h := newHall(t)
	h.follow() // and n3 has yet to find this leader
	h.join("n1", "n2")
	h.told("n1", "n2")
	h.programmed("n1", "n2")
	h.put(task("late", "s", "n1", running, running, "a"))
	h.follow()
	h.told("n1")
	h.a.Leave("n1", h.cursors["n1"])
	h.join("n1")
	h.desire("late", stop)
	h.desire("t1", stop)
	h.follow()
	h.told("n1", "n2")
	h.want("n2", h.programmed("n2"), "")
	h.want("n1", h.programmed("n1"), "late@n1") // n3 was not told of it
	h.join("n3")
	h.told("n3")
	h.want("n3", h.programmed("n3"), "t1@n1")
}

// Tasks that nobody leads connections to stop at once.
func TestAudience_HoldsNothingThatNobodyWasToldOf(t *testing.T) {
	h := newHall(t)
	h.put(task("alone", "s", "n1", running, running), task("young", "s", "n1", swarm.TaskStateStarting, running, "a"),
		task("lost", "s", "n5", running, running, "a"))
	h.follow()
	h.join("n1", "n2", "n3")
	h.told("n1", "n2", "n3")
	h.put(task("new", "s", "n1", running, running, "a"))
	h.follow() // and nobody was told yet
	h.desire("alone", stop)
	h.desire("young", stop)
	h.desire("new", stop)
	h.desire("lost", stop)
	h.follow()
	h.held(false, "alone", "young", "new", "lost")

	// Of two stops at once, only the one that was told of waits.
	h.put(task("newer", "s", "n1", running, running, "a"))
	h.follow()
	h.told("n2")
	h.desire("newer", stop)
	h.desire("t2", stop)
	h.follow()
	h.held(true, "newer", "t2")
	h.told("n2")
	h.want("after n2", h.programmed("n2"), "newer@n1")
	h.told("n1", "n3")
	h.want("after the others", h.programmed("n1", "n3"), "t2@n2")
}

// A new leader does not know what nodes were told, and waits for all that may
// lead connections there.
func TestAudience_WaitsAgainAfterAChangeOfLeader(t *testing.T) {
	h := newHall(t)
	h.desire("t1", stop)
	h.put(node("n3", swarm.NodeStateDown))
	h.follow()
	h.held(true, "t1")
	h.join("n1", "n2", "n4")
	h.told("n1", "n2", "n4")
	h.held(true, "t1")
	h.want("n1 and n4", h.programmed("n1", "n4"), "")
	h.want("n2", h.programmed("n2"), "t1@n1")

	h = newHall(t)
	h.desire("t1", stop)
	h.follow()
	h.join("n1")
	h.told("n1")
	h.programmed("n1")
	h.now = h.now.Add(endpoints.Patience)
	h.want("without the others", h.follow(), "t1@n1")
}

// The routing mesh concerns all nodes.
func TestAudience_AllNodesHearOfTheMesh(t *testing.T) {
	h := newHall(t)
	h.put(network("ingress"), task("t5", "s", "n1", running, running, "ingress"))
	h.follow()
	h.join("n1", "n2", "n3", "n4")
	h.told("n1", "n2", "n3", "n4")
	h.desire("t5", stop)
	ch := h.store.Since(h.after)
	h.after = ch.Snapshot.Index
	if turn := h.a.Follow(ch, h.now); !turn.All {
		t.Errorf("told are %v", slices.Collect(maps.Keys(turn.Nodes)))
	}
	h.told("n1", "n2", "n3", "n4")
	h.want("those who have tasks on it or elsewhere", h.programmed("n1", "n2", "n3"), "")
	h.want("n4", h.programmed("n4"), "t5@n1")
}

// Only whom a change concerns is to be told.
func TestAudience_TellsWhomItConcerns(t *testing.T) {
	h := newHall(t)
	h.follow()
	for _, test := range []struct {
		name string
		do   func()
		want string
	}{
		{"a task on a", func() { h.desire("t1", stop) }, "n1 n2 n3"},
		{"a task on b", func() { h.desire("t4", stop) }, "n4"},
		{"nothing new", func() { h.desire("t4", swarm.TaskStateRemove) }, ""},
		{"a node that comes to b", func() { h.put(guest("g", "n2", "b")) }, "n2 n4"},
		{"a node that goes from b", func() { h.remove(object.KindGuest, "g") }, "n2 n4"},
	} {
		test.do()
		ch := h.store.Since(h.after)
		h.after = ch.Snapshot.Index
		turn := h.a.Follow(ch, h.now)
		if got := strings.Join(slices.Sorted(maps.Keys(turn.Nodes)), " "); got != test.want || turn.All {
			t.Errorf("%s: got %q, all %v, want %q", test.name, got, turn.All, test.want)
		}
	}
}
