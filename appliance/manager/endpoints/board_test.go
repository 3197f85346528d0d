package endpoints_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store/object"
)

func TestBoard_StatesOfEndpoints(t *testing.T) {
	const (
		ready   = swarm.NodeStateReady
		down    = swarm.NodeStateDown
		running = swarm.TaskStateRunning
		stop    = swarm.TaskStateShutdown
		remove  = swarm.TaskStateRemove
	)
	for _, test := range []struct {
		node           swarm.NodeState
		state, desired swarm.TaskState
		want           wire.EndpointState
	}{
		{ready, swarm.TaskStateNew, running, ""},
		{ready, swarm.TaskStatePending, running, ""},
		{ready, swarm.TaskStateAssigned, running, wire.EndpointPrepared},
		{ready, swarm.TaskStateReady, swarm.TaskStateReady, wire.EndpointPrepared},
		{ready, swarm.TaskStateStarting, running, wire.EndpointPrepared},
		{ready, running, running, wire.EndpointActive},
		{ready, running, swarm.TaskStateComplete, wire.EndpointActive}, // of a job
		{swarm.NodeStateUnknown, running, running, wire.EndpointActive},
		{swarm.NodeStateDisconnected, running, running, wire.EndpointActive},
		{down, running, running, wire.EndpointDraining},
		{down, swarm.TaskStateStarting, running, wire.EndpointDraining},
		{ready, running, stop, wire.EndpointDraining},
		{ready, running, remove, wire.EndpointDraining},
		{ready, swarm.TaskStatePreparing, stop, wire.EndpointDraining},
		{ready, swarm.TaskStateFailed, running, ""},
		{ready, swarm.TaskStateComplete, swarm.TaskStateComplete, ""},
		{ready, stop, stop, ""},
		{ready, swarm.TaskStateRejected, stop, ""},
		{down, swarm.TaskStateOrphaned, stop, ""},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s", test.node, test.state, test.desired), func(t *testing.T) {
			w := newWorld(t)
			w.put(node("n1", test.node), network("a"), service("s", "a"), revision("s"), task("t", "s", "n1", test.state, test.desired, "a"), guest("g", "n2", "a"), node("n2", ready))
			w.follow()
			if got := newFollower("n2").hear(t, w.board).Networks["a"].Endpoints["t"].State; got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A task that its node leads nothing to drains everywhere, until it does again.
func TestBoard_OfATaskThatLeaves(t *testing.T) {
	w := newWorld(t)
	o := task("t", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
	w.put(node("n1", swarm.NodeStateReady), network("a"), service("s", "a"), revision("s"), guest("g", "n2", "a"), node("n2", swarm.NodeStateReady), o)
	w.follow()
	f := newFollower("n2")
	f.hear(t, w.board)
	for _, leaving := range []bool{true, false} {
		want := wire.EndpointActive
		if leaving {
			want = wire.EndpointDraining
		}
		stored, _ := w.store.Snapshot().Tasks.Get("t")
		o = stored.Clone().(*object.Task)
		o.Leaving = leaving
		w.put(o)
		if news := w.follow(); len(news.Stops) > 0 {
			t.Errorf("leaving %v: stops %v", leaving, news.Stops)
		}
		f.hear(t, w.board)
		if got := f.now.Networks["a"].Endpoints["t"].State; got != want {
			t.Errorf("leaving %v: got %q, want %q", leaving, got, want)
		}
	}
}

func TestBoard_TellsANodeWhatConcernsIt(t *testing.T) {
	w := newWorld(t)
	s := service("s", "a", "ingress")
	publish(s)
	t1 := task("t1", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a", "ingress")
	t1.Ports = s.Endpoint.Ports
	t1.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: "abcdef0123456789"}
	w.put(node("n1", swarm.NodeStateReady), node("n2", swarm.NodeStateDown), network("a"), network("b"), network("ingress"),
		s, revision("s"), t1, guest("g", "n2", "b"))
	w.follow()
	want := map[string]string{
		"n1": `host n1 192.0.2.1 1
host n2 192.0.2.2 2 down
network a name-a
  service s web-s [10.0.0.2] []
  t1 active on n1 [10.0.0.7] [web-s.1.t1 abcdef012345] [alias] []
network ingress name-ingress
  service s web-s [10.0.0.2] [{tcp 8080 80 0} {udp 8082 82 1}] preserve
  t1 active on n1 [10.0.0.7] [web-s.1.t1 abcdef012345] [alias] [{tcp 8080 80 0} {udp 8082 82 1}]
`,
		"n2": `host n1 192.0.2.1 1
host n2 192.0.2.2 2 down
network b name-b
  g draining on n2 [10.0.0.9] [0123456789ab sh] [] []
network ingress name-ingress
  service s web-s [10.0.0.2] [{tcp 8080 80 0} {udp 8082 82 1}] preserve
  t1 active on n1 [10.0.0.7] [web-s.1.t1 abcdef012345] [alias] [{tcp 8080 80 0} {udp 8082 82 1}]
`,
	}
	for id, want := range want {
		if diff := cmp.Diff(want, text(newFollower(id).hear(t, w.board))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
	}
}

// A service that was removed is known for as long as its tasks are.
func TestBoard_KeepsAServiceForItsTasks(t *testing.T) {
	w := newWorld(t)
	w.put(node("n1", swarm.NodeStateReady), network("a"), service("s", "a"), revision("s"))
	w.put(task("t", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a"), guest("g", "n1", "a"))
	f := newFollower("n1")
	is := func(when string, want bool) {
		t.Helper()
		w.follow()
		if s, ok := f.hear(t, w.board).Networks["a"].Services["s"]; ok != want || ok && s.Name != "web-s" {
			t.Errorf("%s: got %v, %v, want %v", when, s, ok, want)
		}
	}
	is("at first", true)
	w.remove(object.KindService, "s")
	is("with a task", true)
	w.put(task("t", "s", "n1", swarm.TaskStateShutdown, swarm.TaskStateRemove, "a"))
	is("without a task", false)
}

// What no node would understand is left out, and does not harm the rest.
func TestBoard_LeavesOutWhatNoNodeUnderstands(t *testing.T) {
	w := newWorld(t)
	w.put(node("n1", swarm.NodeStateReady), network("a"), service("s", "a"), revision("s"))
	bad := task("bad", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
	bad.Networks[0].Addresses = []netip.Prefix{netip.MustParsePrefix("224.0.0.1/24")}
	huge := task("huge", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
	huge.Networks[0].Aliases = []string{string(make([]byte, 1<<17))}
	liar := node("n2", swarm.NodeStateReady)
	liar.DataPath, liar.Status.Addr = "fe80::1%eth0", "0.0.0.0"
	odd := network("odd")
	odd.VNI = 1 << 24
	good := task("good", "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
	good.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: "01234567890é"}
	w.put(bad, huge, liar, odd, good)
	if n := len(w.follow().Refused); n != 3 {
		t.Errorf("%d things are refused, want 3", n)
	}
	want := `host n1 192.0.2.1 1
host n2 invalid IP 2
network a name-a
  service s web-s [10.0.0.2] []
  good active on n1 [10.0.0.7] [web-s.1.good] [alias] []
`
	if diff := cmp.Diff(want, text(newFollower("n1").hear(t, w.board))); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// Who is further behind than what is remembered is told everything.
func TestBoard_TellsEverythingToWhoIsFarBehind(t *testing.T) {
	w := newWorld(t)
	w.put(node("n1", swarm.NodeStateReady), network("a"), guest("g", "n1", "a"))
	w.follow()
	near, far := newFollower("n1"), newFollower("n1")
	far.hear(t, w.board)
	complete := 0
	for i := range 2500 {
		id := fmt.Sprint("t", i)
		w.put(task(id, "s", "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "a"))
		w.follow()
		w.remove(object.KindTask, id)
		w.follow()
		for _, part := range w.board.Since("n1", &near.cursor) {
			if part.Complete {
				complete++
			}
		}
	}
	if complete != 1 {
		t.Errorf("who follows is told everything %d times, want once", complete)
	}
	parts := w.board.Since("n1", &far.cursor)
	if !parts[0].Complete || len(parts[0].Items) != 3 {
		t.Errorf("who is far behind is told %d things, complete %v", len(parts[0].Items), parts[0].Complete)
	}
}

// TestBoard_FollowsAsIfItBeganAnew takes boards and nodes through random
// histories. However far apart a node looks, it knows what one is told that
// begins anew, of a board that begins anew.
func TestBoard_FollowsAsIfItBeganAnew(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := &history{world: newWorld(t), rng: rand.New(rand.NewPCG(seed, 1))}
			var nodes []*follower
			for i := range 4 {
				nodes = append(nodes, newFollower(fmt.Sprint("n", i+1)))
			}
			for range 150 {
				for range 1 + h.rng.IntN(3) {
					h.step()
				}
				h.follow()
				f := nodes[h.rng.IntN(len(nodes))]
				if h.rng.IntN(20) == 0 {
					*f = *newFollower(f.node) // a new session
				}
				fresh := newWorld(t)
				fresh.store = h.store
				fresh.follow()
				want := text(newFollower(f.node).hear(t, fresh.board))
				if diff := cmp.Diff(want, text(f.hear(t, h.board))); diff != "" {
					t.Fatalf("%s at version %d (-anew +followed):\n%s", f.node, h.after, diff)
				}
			}
		})
	}
}

// history makes things happen.
type history struct {
	*world
	rng *rand.Rand
}

func (h *history) one(of ...string) string { return of[h.rng.IntN(len(of))] }

func (h *history) some(of ...string) (out []string) {
	for _, s := range of {
		if h.rng.IntN(2) == 0 {
			out = append(out, s)
		}
	}
	return out
}

func (h *history) step() {
	networks := []string{"a", "b", "ingress"}
	services := []string{"s1", "s2", "s3"}
	at := h.one("n1", "n2", "n3", "n4")
	switch kind := h.rng.IntN(20); {
	case kind < 1:
		h.toggle(object.KindNetwork, h.one(networks...), func(id string) object.Object {
			n := network(id)
			n.VNI *= uint32(h.rng.IntN(2))
			n.Spec.Internal = h.rng.IntN(2) == 0
			return n
		})
	case kind < 3:
		h.toggle(object.KindNode, at, func(id string) object.Object {
			return node(id, swarm.NodeState(h.one("ready", "ready", "unknown", "down")))
		})
	case kind < 6:
		h.toggle(object.KindService, h.one(services...), func(id string) object.Object {
			s := service(id, h.some(networks...)...)
			if h.rng.IntN(2) == 0 {
				publish(s)
			}
			if h.rng.IntN(2) == 0 {
				s.Endpoint.VirtualIPs = nil
			}
			return s
		})
	case kind < 7:
		h.toggle(object.KindRevision, h.one(services...)+"/1", func(id string) object.Object { return revision(id[:2]) })
	case kind < 9:
		h.toggle(object.KindGuest, h.one("g1", "g2", "g3"), func(id string) object.Object { return guest(id, at, h.one(networks...)) })
	default:
		h.toggle(object.KindTask, fmt.Sprint("t", h.rng.IntN(8)), func(id string) object.Object {
			state := swarm.TaskState(h.one("pending", "assigned", "starting", "running", "running", "failed", "shutdown"))
			t := task(id, h.one(services...), at, state, swarm.TaskState(h.one("running", "running", "shutdown", "remove")), h.some(networks...)...)
			if was, ok := h.store.Snapshot().Tasks.Get(id); ok { // of which this much never changes
				t.NodeID, t.ServiceID, t.Networks = was.NodeID, was.ServiceID, was.Networks
			}
			return t
		})
	}
}

// toggle removes an object that is there, now and then, or else puts one there.
func (h *history) toggle(kind object.Kind, id string, create func(id string) object.Object) {
	if h.store.Snapshot().Get(kind, id) != nil && h.rng.IntN(4) == 0 {
		h.remove(kind, id)
		return
	}
	h.put(create(id))
}
