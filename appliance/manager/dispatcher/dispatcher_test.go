package dispatcher_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/dispatcher"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// world is a dispatcher that leads, over a store with the nodes n1 and n2.
type world struct {
	*testing.T
	store *storetest.Local
	d     *dispatcher.Dispatcher
}

func run(t *testing.T, do func(t *testing.T, w *world)) {
	t.Helper()
	runWith(t, nil, do)
}

func runWith(t *testing.T, holdings func(string, *wire.Holdings), do func(t *testing.T, w *world)) {
	t.Helper()
	runOn(t, func(s *storetest.Local) store.Proposer { return s }, holdings, do)
}

func runOn(
	t *testing.T, proposer func(*storetest.Local) store.Proposer, holdings func(string, *wire.Holdings), do func(t *testing.T, w *world),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, store: storetest.New(t)}
		w.store.Write(t, func(tx *store.Tx) {
			for _, id := range []string{"n1", "n2"} {
				n := &object.Node{}
				n.ID, n.Status.State = id, swarm.NodeStateDown
				tx.Create(n)
			}
		})
		w.d = fresh(proposer(w.store), holdings)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.d.Run(ctx) }() // waited for below
		synctest.Wait()
		do(t, w)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want that it was canceled", err)
		}
	})
}

func fresh(s store.Proposer, holdings func(string, *wire.Holdings)) *dispatcher.Dispatcher {
	return dispatcher.New(dispatcher.Config{Store: s, Logger: slog.New(slog.DiscardHandler), Holdings: holdings})
}

// agent is a node's end of a session, by hand.
type agent struct {
	w    *world
	pipe net.Conn
	conn *wire.Conn
	done chan struct{} // closed when all messages are read
	got  chan *wire.Message
}

// dial begins a session of n1 and reads the answer to the hello.
func (w *world) dial() (*agent, *wire.Message) {
	w.Helper()
	c, err := w.d.Dial(w.Context(), "n1")
	if err != nil {
		w.Fatal(err)
	}
	a := &agent{w: w, pipe: c, conn: wire.NewConn(c), done: make(chan struct{}), got: make(chan *wire.Message, 100)}
	a.send(&wire.Message{Hello: &wire.Hello{Protocol: wire.Protocol, Description: swarm.NodeDescription{Hostname: "n1.local"}}})
	m, err := a.conn.Receive(time.Minute)
	if err != nil {
		w.Fatal(err)
	}
	go func() { // ends with the connection, which the dispatcher closes
		defer close(a.done)
		for {
			next, err := a.conn.Receive(time.Hour)
			if err != nil {
				return
			}
			a.got <- next
		}
	}()
	return a, m
}

func (a *agent) close() error { return a.pipe.Close() }

func (a *agent) send(m *wire.Message) {
	a.w.Helper()
	if err := a.conn.Send(m, time.Minute); err != nil {
		a.w.Fatal(err)
	}
}

// assignments are the sets that came since, "+" and "-" before each item, and
// acknowledges them.
func (a *agent) assignments() string {
	a.w.Helper()
	var out []string
	for {
		synctest.Wait()
		select {
		case m := <-a.got:
			set := m.Assignments
			if set == nil {
				continue
			}
			text := set.AppliesTo + ">" + set.ResultsIn
			for _, i := range set.Items {
				sign := "+"
				if len(i.Data) == 0 {
					sign = "-"
				}
				text += " " + sign + i.Key
			}
			out = append(out, text)
			a.send(&wire.Message{Acknowledge: &wire.Acknowledge{ResultsIn: set.ResultsIn}})
		default:
			return strings.Join(out, "; ")
		}
	}
}

// ended reports whether the dispatcher has closed the session, and why.
func (a *agent) ended() (bool, error) {
	synctest.Wait()
	select {
	case <-a.done:
	default:
		return false, nil
	}
	close(a.got)
	for m := range a.got {
		if m.Refusal != nil {
			return true, m.Refusal.Err()
		}
	}
	return true, nil
}

func (w *world) node(id string) *object.Node {
	synctest.Wait()
	n, _ := w.store.Snapshot().Nodes.Get(id)
	return n
}

func (w *world) task(id, node, secret string) {
	w.Helper()
	v := swarm.Version{Index: 1}
	t := &object.Task{ID: id, ServiceID: "s-" + id, SpecVersion: v, NodeID: node, DesiredState: swarm.TaskStateRunning}
	t.Status.State = swarm.TaskStateAssigned
	r := &object.Revision{ServiceID: t.ServiceID, SpecVersion: v}
	r.Spec.ContainerSpec = &swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{SecretID: secret}}}
	s := &object.Secret{}
	s.ID, s.Spec.Name = secret, secret
	w.store.Write(w.T, func(tx *store.Tx) { tx.Create(t); tx.Create(r); tx.Create(s) })
}

func (w *world) edit(id string, do func(*object.Task)) {
	w.Helper()
	t, _ := w.store.Snapshot().Tasks.Get(id)
	t = t.Clone().(*object.Task)
	do(t)
	w.store.Write(w.T, func(tx *store.Tx) { tx.Update(t) })
}

func TestServe_SendsWhatTheNodeNeeds(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.task("t1", "n1", "k1")
		w.task("t2", "n2", "k2")
		a, _ := w.dial()
		want := func(what, want string) {
			t.Helper()
			if got := a.assignments(); got != want {
				t.Errorf("%s: got %q, want %q", what, got, want)
			}
		}
		want("complete", ">1 +s-t1/1 +k1 +t1")
		w.task("t3", "n1", "k3")
		want("one more", "1>2 +s-t3/1 +k3 +t3")
		w.task("t4", "n2", "k4")
		want("another node's", "")
		w.edit("t1", func(t *object.Task) { t.Status.State = swarm.TaskStateRunning })
		want("its own word", "")
		w.edit("t1", func(t *object.Task) { t.DesiredState = swarm.TaskStateShutdown })
		want("to stop, and no more secrets", "2>3 -k1 +t1")
		w.edit("t1", func(t *object.Task) { t.NodeID = "" })
		want("taken away", "3>4 -s-t1/1 -t1")
		again, _ := w.dial()
		if got := again.assignments(); got != ">1 +s-t3/1 +k3 +t3" {
			t.Errorf("a new session: got %q", got)
		}
		if ended, _ := a.ended(); !ended {
			t.Error("two sessions of one node go on")
		}
	})
}

func TestServe_TakesTheNodesWord(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.task("t1", "n1", "k1")
		w.task("t2", "n2", "k2")
		a, _ := w.dial()
		var seq uint64
		tell := func(id string, state swarm.TaskState, text string) swarm.TaskStatus {
			seq++
			a.send(&wire.Message{Statuses: &wire.Statuses{Sequence: seq, Tasks: []wire.TaskStatus{
				{ID: id, Status: swarm.TaskStatus{State: state, Err: text}},
			}}})
			synctest.Wait()
			for len(a.got) > 0 {
				if m := <-a.got; m.Acknowledge != nil && m.Acknowledge.Statuses != seq {
					t.Errorf("status %d: %d is acknowledged", seq, m.Acknowledge.Statuses)
				}
			}
			got, _ := w.store.Snapshot().Tasks.Get(id)
			return got.Status
		}
		tests := []struct {
			id    string
			state swarm.TaskState
			text  string
			want  swarm.TaskState
		}{
			{"t1", swarm.TaskStatePreparing, "", swarm.TaskStatePreparing},
			{"t1", swarm.TaskStateAccepted, "", swarm.TaskStatePreparing}, // back
			{"t2", swarm.TaskStateRunning, "", swarm.TaskStateAssigned},   // another node's
			{"t1", swarm.TaskStateRunning, "", swarm.TaskStateRunning},
			{"t1", swarm.TaskStateOrphaned, "", swarm.TaskStateRunning}, // not for a node to say
			{"t1", "dancing", "", swarm.TaskStateRunning},
			{"t1", swarm.TaskStateFailed, "exit", swarm.TaskStateFailed},
			{"t1", swarm.TaskStateFailed, "other", swarm.TaskStateFailed},
			{"t1", swarm.TaskStateShutdown, "", swarm.TaskStateFailed},
		}
		for _, tt := range tests {
			if got := tell(tt.id, tt.state, tt.text); got.State != tt.want {
				t.Errorf("%s %s: got %s, want %s", tt.id, tt.state, got.State, tt.want)
			}
		}
		last, _ := w.store.Snapshot().Tasks.Get("t1")
		if last.Status.Err != "exit" || last.RunningSince == 0 || last.AppliedAt == 0 {
			t.Errorf("task: got %+v", last)
		}
	})
}

func TestServe_NodeStates(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, m := w.dial()
		if m.Welcome == nil || m.Welcome.Period < 4500*time.Millisecond || m.Welcome.Period > 5500*time.Millisecond {
			t.Fatalf("hello: got %+v", m)
		}
		if n := w.node("n1"); n.Status.State != swarm.NodeStateReady || n.Description.Hostname != "n1.local" {
			t.Errorf("registered: got %+v", n)
		}
		for range 10 {
			time.Sleep(5 * time.Second)
			a.send(&wire.Message{Beat: &wire.Beat{}})
		}
		a.send(&wire.Message{Describe: &wire.Describe{Description: swarm.NodeDescription{Hostname: "new"}}})
		if n := w.node("n1"); n.Status.State != swarm.NodeStateReady || n.Description.Hostname != "new" {
			t.Errorf("alive: got %+v", n)
		}
		time.Sleep(17 * time.Second)
		want := swarm.NodeStatus{State: swarm.NodeStateDown, Message: "heartbeat failure"}
		if diff := cmp.Diff(want, w.node("n1").Status); diff != "" {
			t.Errorf("silent (-want +got):\n%s", diff)
		}
		if ended, _ := a.ended(); !ended {
			t.Error("the session of a node that is down goes on")
		}
	})
}

func TestServe_RemovedNodeIsCutOff(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		n := w.node("n1")
		w.store.Write(t, func(tx *store.Tx) { tx.Delete(n) })
		if ended, err := a.ended(); !ended || !errors.Is(err, wire.ErrExpelled) {
			t.Errorf("session: ended %v, %v", ended, err)
		}
		if _, m := w.dial(); m.Refusal == nil || m.Refusal.Text != "node n1 not found" {
			t.Errorf("hello: got %+v, want a refusal", m)
		}
	})
}

func TestServe_Refuses(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		var texts []string
		for range 4 {
			if _, m := w.dial(); m.Refusal != nil {
				texts = append(texts, m.Refusal.Text)
			}
		}
		if want := []string{"node n1 exceeded rate limit count of registrations"}; !slices.Equal(texts, want) {
			t.Errorf("registrations: got %q, want %q", texts, want)
		}
		time.Sleep(8 * time.Second)
		if _, m := w.dial(); m.Welcome == nil {
			t.Errorf("later: got %+v", m)
		}
		for _, bad := range []*wire.Message{
			{Hello: &wire.Hello{Protocol: 99}},
			{Beat: &wire.Beat{}},
		} {
			c, err := w.d.Dial(t.Context(), "n2")
			if err != nil {
				t.Fatal(err)
			}
			conn := wire.NewConn(c)
			if err := conn.Send(bad, time.Minute); err != nil {
				t.Fatal(err)
			}
			if m, err := conn.Receive(time.Minute); err != nil || m.Refusal == nil || !errdefs.IsInvalidArgument(m.Refusal.Err()) {
				t.Errorf("session that begins with %+v: got %+v, %v", bad, m, err)
			}
		}
	})
}

func TestRun_NewLeaderAsksWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, store: storetest.New(t)}
		w.store.Write(t, func(tx *store.Tx) {
			for id, state := range map[string]swarm.NodeState{"up": swarm.NodeStateReady, "off": swarm.NodeStateDown} {
				n := &object.Node{}
				n.ID, n.Status.State = id, state
				tx.Create(n)
			}
		})
		w.d = dispatcher.New(dispatcher.Config{Store: w.store, Logger: slog.New(slog.DiscardHandler)})
		if _, err := w.d.Dial(t.Context(), "up"); !errdefs.IsUnavailable(err) {
			t.Errorf("Dial while nobody leads: got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.d.Run(ctx) }() // waited for below
		want := func(id string, state swarm.NodeState, message string) {
			t.Helper()
			if diff := cmp.Diff(swarm.NodeStatus{State: state, Message: message}, w.node(id).Status); diff != "" {
				t.Errorf("node %s (-want +got):\n%s", id, diff)
			}
		}
		want("up", swarm.NodeStateUnknown, `Node moved to "unknown" state due to leadership change in cluster`)
		want("off", swarm.NodeStateDown, "")
		time.Sleep(25 * time.Second)
		want("up", swarm.NodeStateUnknown, `Node moved to "unknown" state due to leadership change in cluster`)
		time.Sleep(10 * time.Second)
		want("up", swarm.NodeStateDown, `heartbeat failure for node in "unknown" state`)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want that it was canceled", err)
		}
	})
}
