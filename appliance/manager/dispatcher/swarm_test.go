package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// swarms are what the node was told of its swarm since.
func (a *agent) swarms() (out []*wire.Swarm) {
	for {
		synctest.Wait()
		select {
		case m := <-a.got:
			if m.Swarm != nil {
				out = append(out, m.Swarm)
			}
		default:
			return out
		}
	}
}

func (w *world) editNode(id string, do func(*object.Node)) {
	w.Helper()
	n := w.node(id).Clone().(*object.Node)
	do(n)
	w.store.Write(w.T, func(tx *store.Tx) { tx.Update(n) })
}

func TestServe_TellsOfTheSwarm(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		c := &object.Cluster{ID: "c", Epoch: 4, RootCA: object.RootCA{Cert: []byte("root")}}
		c.GossipKeys = object.KeyRing{Version: 3, Keys: [][]byte{{1}}}
		w.store.Write(t, func(tx *store.Tx) { tx.Create(c) })
		a, _ := w.dial()
		want := func(what string, want ...*wire.Swarm) {
			t.Helper()
			if diff := cmp.Diff(want, a.swarms()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		told := wire.Swarm{Epoch: 4, Roots: []byte("root"), Role: swarm.NodeRoleWorker, GossipVersion: 3, GossipKeys: [][]byte{{1}}}
		want("at first", new(told))
		w.editNode("n2", func(n *object.Node) { n.Spec.Labels = map[string]string{"a": "b"} })
		want("another node's labels")
		w.editNode("n2", func(n *object.Node) {
			n.Spec.Role, n.ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Addr: "10.0.0.2:2377"}
		})
		want("a manager that is no replica")
		w.editNode("n2", func(n *object.Node) { n.ManagerStatus.Reachability = swarm.ReachabilityReachable })
		told.Managers = []wire.Peer{{NodeID: "n2", Addr: "10.0.0.2:2377"}}
		want("a manager", new(told))
		w.editNode("n1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleManager })
		told.Role = swarm.NodeRoleManager
		want("its own role", new(told))
		w.editNode("n1", func(n *object.Node) { n.MinGeneration = 7 })
		told.Renew = 7
		want("its certificate", new(told))
		w.editNode("n2", func(n *object.Node) { n.ManagerStatus.Addr = "10.0.0.3:2377" })
		told.Managers = []wire.Peer{{NodeID: "n2", Addr: "10.0.0.3:2377"}}
		want("an address", new(told))
	})
}

func TestServe_NodesThatCanBeReplicasSaySo(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		member := &wire.Member{RaftID: "r", Addr: "10.0.0.1:2377"}
		tell := func() string {
			a.send(&wire.Message{Describe: &wire.Describe{Member: member}})
			n := w.node("n1")
			return fmt.Sprint(n.RaftID, " ", n.ManagerStatus != nil && n.ManagerStatus.Addr == member.Addr)
		}
		if got := tell(); got != " false" {
			t.Errorf("a worker's word: got %s", got)
		}
		// What it said before it was to be a manager counts when it is.
		w.editNode("n1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleManager })
		if n := w.node("n1"); n.RaftID != "r" || n.ManagerStatus == nil {
			t.Errorf("promoted: got %+v", n)
		}
		member = &wire.Member{RaftID: "r2", Addr: "10.0.0.9:2377"}
		if got := tell(); got != "r2 true" {
			t.Errorf("a manager that moved: got %s", got)
		}
	})
}

func TestConnect_PairsStreams(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		if _, err := w.d.Connect(t.Context(), "n1"); !errdefs.IsUnavailable(err) || err.Error() != "node n1 is not available" {
			t.Errorf("Connect to a node without a session: got %v", err)
		}
		a, _ := w.dial()
		invited := func() string {
			t.Helper()
			for {
				synctest.Wait()
				select {
				case m := <-a.got:
					if m.Invite != nil {
						return m.Invite.Stream
					}
				default:
					t.Fatal("the node is not invited")
				}
			}
		}
		type result struct {
			conn net.Conn
			err  error
		}
		connect := func() chan result {
			c := make(chan result, 1)
			go func() { // waited for by its result
				conn, err := w.d.Connect(t.Context(), "n1")
				c <- result{conn, err}
			}()
			return c
		}
		attached := make(chan error, 1)
		attach := func(node, stream string) net.Conn {
			here, there := net.Pipe()
			go func() { attached <- w.d.Attach(t.Context(), node, stream, there) }()
			return here
		}

		c := connect()
		name := invited()
		for node, stream := range map[string]string{"n2": name, "n1": "guessed"} {
			here := attach(node, stream)
			if err := <-attached; !errdefs.IsNotFound(err) {
				t.Errorf("stream %s of %s: got %v", stream, node, err)
			}
			if _, err := here.Read(make([]byte, 1)); err == nil {
				t.Error("a refused stream stays open")
			}
		}
		here := attach("n1", name)
		got := <-c
		if got.err != nil {
			t.Fatal(got.err)
		}
		go func() { _, _ = here.Write([]byte("hello")) }() // read below
		b := make([]byte, 5)
		if _, err := io.ReadFull(got.conn, b); err != nil || string(b) != "hello" {
			t.Errorf("read: got %q, %v", b, err)
		}
		synctest.Wait()
		select {
		case err := <-attached:
			t.Fatalf("Attach returned while the stream is in use: %v", err)
		default:
		}
		if err := errors.Join(got.conn.Close(), <-attached); err != nil {
			t.Errorf("closed: %v", err)
		}
		attach("n1", name)
		if err := <-attached; !errdefs.IsNotFound(err) {
			t.Errorf("a stream's name is used again: got %v", err)
		}

		c = connect()
		name = invited()
		start := time.Now()
		if got := <-c; !errdefs.IsUnavailable(got.err) || time.Since(start) != 10*time.Second {
			t.Errorf("no stream: got %v after %v", got.err, time.Since(start))
		}
		attach("n1", name)
		if err := <-attached; !errdefs.IsNotFound(err) {
			t.Errorf("a stream that comes too late: got %v", err)
		}
		if len(name) < 26 {
			t.Errorf("stream is called %q, which can be guessed", name)
		}
	})
}

func TestReach_JoinsTwoStreams(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		follower, leader := net.Pipe()
		done := make(chan error, 2)
		go func() { done <- w.d.Reach(t.Context(), "n1", leader) }() // waited for below
		synctest.Wait()
		var name string
		for name == "" {
			if m := <-a.got; m.Invite != nil {
				name = m.Invite.Stream
			}
		}
		node, there := net.Pipe()
		go func() { done <- w.d.Attach(t.Context(), "n1", name, there) }() // waited for below
		go func() { _, _ = follower.Write([]byte("ls")) }()                // read below
		b := make([]byte, 2)
		if _, err := io.ReadFull(node, b); err != nil || string(b) != "ls" {
			t.Errorf("read at the node: got %q, %v", b, err)
		}
		if err := follower.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Read(b); err == nil {
			t.Error("the node's stream stays open")
		}
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("at the end: %v", err)
			}
		}
	})
}

func TestServe_PassesHoldingsOn(t *testing.T) {
	var got []string
	note := func(node string, h *wire.Holdings) {
		switch {
		case h == nil:
			got = append(got, node+" ended")
		case h.Complete:
			got = append(got, node+" all")
		default:
			got = append(got, node+" more")
		}
	}
	runWith(t, note, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		a.send(&wire.Message{Holdings: &wire.Holdings{Complete: true}})
		a.send(&wire.Message{Holdings: &wire.Holdings{}})
		synctest.Wait()
		b, _ := w.dial() // takes over
		b.send(&wire.Message{Holdings: &wire.Holdings{Complete: true}})
		synctest.Wait()
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if want := []string{"n1 all", "n1 more", "n1 all", "n1 ended"}; !slices.Equal(got, want) {
			t.Errorf("holdings: got %q, want %q", got, want)
		}
	})
}

func TestServe_ConnectionLossAndGossip(t *testing.T) {
	tests := []struct {
		name         string
		speaks, lost bool          // the node beats, or its connection is lost at once
		answers      bool          // the node beats when it is asked to
		dead         time.Duration // when gossip takes the node for dead; negative is never
		disconnected time.Duration // when the node is so; 0 is never
		down         time.Duration // 0 is never
	}{
		{name: "well", speaks: true, dead: -1},
		{name: "well, whatever gossip says", speaks: true, dead: 0},
		{name: "silent", dead: -1, down: 15 * time.Second},
		{name: "silent and dead", dead: 2 * time.Second, down: 4500 * time.Millisecond},
		{name: "answers", speaks: true, answers: true, dead: 6 * time.Second},
		{name: "silent and dead later", dead: 9 * time.Second, down: 11500 * time.Millisecond},
		{name: "silent and dead in the end", dead: 14 * time.Second, down: 15 * time.Second},
		{name: "lost", lost: true, dead: -1, disconnected: time.Second, down: 15 * time.Second},
		{name: "lost and dead", lost: true, dead: 3 * time.Second, disconnected: time.Second, down: 6 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
				a, _ := w.dial()
				synctest.Wait()
				start := time.Now()
				if tt.lost {
					if err := a.close(); err != nil {
						t.Fatal(err)
					}
				}
				var disconnected, down time.Duration
				for at := time.Duration(0); at < 25*time.Second; at += 500 * time.Millisecond {
					if at == tt.dead {
						w.d.Hint("n1", true)
					}
					if tt.answers && asked(a) {
						a.send(&wire.Message{Beat: &wire.Beat{}})
					}
					if tt.speaks && at%(5*time.Second) == 0 {
						a.send(&wire.Message{Beat: &wire.Beat{}})
					}
					switch n := w.node("n1"); {
					case n.Status.State == swarm.NodeStateDisconnected && disconnected == 0:
						disconnected = time.Since(start)
					case n.Status.State == swarm.NodeStateDown && down == 0:
						down = time.Since(start)
						if n.StateSince != time.Now().UnixNano() {
							t.Errorf("it is down since %v", time.Unix(0, n.StateSince))
						}
					}
					time.Sleep(500 * time.Millisecond)
				}
				if disconnected != tt.disconnected || down != tt.down {
					t.Errorf("disconnected after %v and down after %v, want %v and %v", disconnected, down, tt.disconnected, tt.down)
				}
			})
		})
	}
}

// asked says whether the node is to show that it is alive.
func asked(a *agent) (asked bool) {
	synctest.Wait()
	for len(a.got) > 0 {
		m := <-a.got
		asked = asked || m.Beat != nil && m.Beat.Period == time.Second
	}
	return asked
}

func TestServe_TellsWhereTheNodesAre(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.editNode("n2", func(n *object.Node) { n.Status.Addr = "10.0.0.2" })
		a, _ := w.dial()
		want := func(what string, want ...*wire.Nodes) {
			t.Helper()
			synctest.Wait()
			var got []*wire.Nodes
			for len(a.got) > 0 {
				if m := <-a.got; m.Nodes != nil {
					got = append(got, m.Nodes)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		at := func(id, addr string) []wire.Peer { return []wire.Peer{{NodeID: id, Addr: addr}} }
		want("at first", &wire.Nodes{Complete: true, Items: at("n2", "10.0.0.2")})
		w.editNode("n2", func(n *object.Node) { n.Status.State = swarm.NodeStateReady })
		want("another state")
		w.editNode("n2", func(n *object.Node) { n.Status.Addr = "10.0.0.3" })
		want("another address", &wire.Nodes{Items: at("n2", "10.0.0.3")})
		w.editNode("n2", func(n *object.Node) {
			n.Spec.Role, n.ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Addr: "10.0.0.4:2377"}
		})
		want("a manager says where it is", &wire.Nodes{Items: at("n2", "10.0.0.4")})
		w.editNode("n1", func(n *object.Node) { n.Status.Addr = "::ffff:10.0.0.1" })
		want("itself", &wire.Nodes{Items: at("n1", "10.0.0.1")})
		n := w.node("n2")
		w.store.Write(t, func(tx *store.Tx) { tx.Delete(n) })
		want("removed", &wire.Nodes{Gone: []string{"n2"}})
		a, _ = w.dial()
		want("another session", &wire.Nodes{Complete: true, Items: at("n1", "10.0.0.1")})
	})
}

func TestServe_TellsAllWhoIsFarBehind(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		synctest.Wait()
		for round := range 10 {
			w.store.Write(t, func(tx *store.Tx) {
				for i := range 500 {
					n := &object.Node{}
					n.ID, n.Status.Addr = fmt.Sprintf("%d-%d", round, i), "10.0.0.9"
					tx.Create(n)
				}
			})
		}
		known := map[string]bool{}
		complete := 0
		// What the pipe does not take is sent as it is read.
		for len(known) < 5000 {
			synctest.Wait()
			if len(a.got) == 0 {
				t.Fatalf("the node is told of %d nodes", len(known))
			}
			m := <-a.got
			if m.Nodes == nil {
				continue
			}
			if m.Nodes.Complete {
				complete++
				clear(known)
			}
			for _, p := range m.Nodes.Items {
				known[p.NodeID] = true
			}
		}
		if complete != 1 {
			t.Errorf("%d complete lists", complete)
		}
	})
}

func TestHaveKeys_IsWhatAllNodesSay(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		if !w.d.HaveKeys(7) {
			t.Error("nodes that are down are waited for")
		}
		a, _ := w.dial()
		synctest.Wait()
		if w.d.HaveKeys(7) {
			t.Error("a node that has not said so has the keys")
		}
		a.send(&wire.Message{Beat: &wire.Beat{Keys: 7}})
		synctest.Wait()
		if !w.d.HaveKeys(7) || w.d.HaveKeys(8) {
			t.Errorf("keys 7 and 8: got %t, %t", w.d.HaveKeys(7), w.d.HaveKeys(8))
		}
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w.d.HaveKeys(7) {
			t.Error("a node without a session has the keys")
		}
		time.Sleep(time.Minute)
		if !w.d.HaveKeys(7) {
			t.Error("a node that went down is waited for")
		}
	})
}

func TestRun_UnknownNodesDoNotGetTimeFromEachLeader(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.editNode("n1", func(n *object.Node) { n.Status.State = swarm.NodeStateReady })
		start := time.Now()
		var ends []func()
		lead := func() {
			next := w.again()
			ends = append(ends, next)
			synctest.Wait()
		}
		lead()
		if n := w.node("n1"); n.Status.State != swarm.NodeStateUnknown {
			t.Fatalf("node is %s", n.Status.State)
		}
		time.Sleep(20 * time.Second)
		ends[0]()
		lead()
		for w.node("n1").Status.State == swarm.NodeStateUnknown && time.Since(start) < time.Minute {
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took != 35*time.Second {
			t.Errorf("down after %v, want 20 s of the first leader and three beats of the second", took)
		}
		ends[1]()
	})
}

func TestGeneration_IsThatOfTheSession(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		if g, ok := w.d.Generation("n1"); ok || g != 0 {
			t.Errorf("without a session: got %d, %t", g, ok)
		}
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- w.d.Serve(t.Context(), there, pki.Node{ID: "n1", Generation: 9}) }() // waited for below
		c := wire.NewConn(here)
		if err := c.Send(&wire.Message{Hello: &wire.Hello{Protocol: wire.Protocol}}, time.Minute); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if g, ok := w.d.Generation("n1"); !ok || g != 9 {
			t.Errorf("with one: got %d, %t", g, ok)
		}
		if err := errors.Join(here.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
}

// again lets another dispatcher lead, over the same store, until it is ended.
func (w *world) again() (end func()) {
	d := fresh(w.store, nil)
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }() // waited for by end
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.Errorf("Run: got %v, want that it was canceled", err)
		}
	}
}
