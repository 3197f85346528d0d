package dispatcher_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// member is a node with a session, by hand: it notes what it is told and answers
// when it is told to.
type member struct {
	*agent
	node string
	view *wire.View
	now  *wire.NetworkView
}

// join begins a session of a node.
func (w *world) join(node string) *member {
	w.Helper()
	c, err := w.d.Dial(w.Context(), node)
	if err != nil {
		w.Fatal(err)
	}
	a := &agent{w: w, pipe: c, conn: wire.NewConn(c), done: make(chan struct{}), got: make(chan *wire.Message, 100)}
	a.send(&wire.Message{Hello: &wire.Hello{Protocol: wire.Protocol, Description: swarm.NodeDescription{Hostname: node}}})
	go func() { // ends with the connection, which the dispatcher closes
		defer close(a.done)
		for {
			m, err := a.conn.Receive(time.Hour)
			if err != nil {
				return
			}
			a.got <- m
		}
	}()
	return &member{agent: a, node: node, view: wire.NewView(nil)}
}

// told is what came since: each view, and each task with its desired state.
func (m *member) told() string {
	m.w.Helper()
	var out []string
	for {
		synctest.Wait()
		select {
		case msg := <-m.got:
			switch {
			case msg.Networks != nil:
				v, err := m.view.Apply(msg.Networks)
				if err != nil {
					m.w.Fatal(err)
				}
				m.now = v
				out = append(out, describe(v))
			case msg.Assignments != nil:
				for _, i := range msg.Assignments.Items {
					if i.Kind == object.KindTask && len(i.Data) > 0 {
						o, err := i.Unpack()
						if err != nil {
							m.w.Fatal(err)
						}
						out = append(out, fmt.Sprintf("%s is to be %s", i.Key, o.(*object.Task).DesiredState))
					}
				}
				m.send(&wire.Message{Acknowledge: &wire.Acknowledge{ResultsIn: msg.Assignments.ResultsIn}})
			default:
			}
		default:
			return strings.Join(out, "; ")
		}
	}
}

func (m *member) programmed() {
	m.w.Helper()
	m.send(&wire.Message{Programmed: &wire.Programmed{Networks: m.now.Version}})
	synctest.Wait()
}

func (m *member) want(what, want string) {
	m.w.Helper()
	if got := m.told(); got != want {
		m.w.Errorf("%s, %s: got %q, want %q", m.node, what, got, want)
	}
}

// describe is which endpoints a view has.
func describe(v *wire.NetworkView) string {
	if v == nil {
		return "a part"
	}
	out := []string{"networks"}
	for id, n := range v.Networks {
		for _, e := range n.Endpoints {
			out = append(out, fmt.Sprintf("%s/%s:%s", id, e.ID, e.State))
		}
	}
	slices.Sort(out[1:])
	return strings.Join(out, " ")
}

// networked has a network "a", and the running tasks t1 on n1 and t2 on n2 that
// are on it.
func (w *world) networked() {
	w.Helper()
	n := &object.Network{VNI: 4096}
	n.ID = "a"
	w.store.Write(w.T, func(tx *store.Tx) { tx.Create(n) })
	for i := range 2 {
		w.editNode(fmt.Sprint("n", i+1), func(n *object.Node) { n.Status.State = swarm.NodeStateReady })
		w.on(fmt.Sprint("t", i+1), fmt.Sprint("n", i+1), swarm.TaskStateRunning)
	}
	synctest.Wait()
}

// on makes a task on a network.
func (w *world) on(id, node string, state swarm.TaskState) {
	w.Helper()
	w.store.Write(w.T, func(tx *store.Tx) {
		t := &object.Task{ID: id, ServiceID: "s", NodeID: node, DesiredState: swarm.TaskStateRunning}
		t.Status.State = state
		t.Networks = []object.TaskNetwork{{ID: "a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}}}
		tx.Create(t)
	})
}

// stop asks the first task to.
func (w *world) stop() {
	w.Helper()
	w.edit("t1", func(t *object.Task) { t.DesiredState = swarm.TaskStateShutdown })
	synctest.Wait()
}

// down has it written that a node is.
func (w *world) down(node string) {
	w.Helper()
	w.editNode(node, func(n *object.Node) { n.Status.State = swarm.NodeStateDown })
	synctest.Wait()
}

func TestSpread_StopsATaskWhenAllHaveProgrammedIt(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		n1, n2 := w.join("n1"), w.join("n2")
		for i, m := range []*member{n1, n2} {
			m.want("at first", fmt.Sprintf("networks a/t1:active a/t2:active; t%d is to be running", i+1))
			m.programmed()
		}
		// The new task is told of before the old one drains.
		w.on("t3", "n2", swarm.TaskStateStarting)
		n2.want("a task to start", "networks a/t1:active a/t2:active a/t3:prepared; t3 is to be running")
		n2.programmed()
		w.edit("t3", func(t *object.Task) { t.Status.State = swarm.TaskStateRunning })
		n1.want("a task that starts", "networks a/t1:active a/t2:active a/t3:prepared")
		n1.programmed()
		w.stop()
		n1.want("its own task drains", "networks a/t1:active a/t2:active a/t3:active; networks a/t1:draining a/t2:active a/t3:active")
		n2.want("that it runs", "networks a/t1:active a/t2:active a/t3:active")
		n2.programmed()
		n2.want("another's drains", "networks a/t1:draining a/t2:active a/t3:active")
		n1.programmed()
		n1.want("after its own word", "")
		// Lies about what is to come are nothing.
		n2.send(&wire.Message{Programmed: &wire.Programmed{Networks: 1 << 60}})
		n1.want("after a lie", "")
		n2.programmed()
		n1.want("after all have said so", "t1 is to be shutdown")
		w.edit("t1", func(t *object.Task) { t.Status.State = swarm.TaskStateShutdown })
		n2.want("when it is gone", "networks a/t2:active a/t3:active")
	})
}

func TestSpread_StopsATaskAfterTwoSecondsAtMost(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		n1, n2 := w.join("n1"), w.join("n2")
		n1.told()
		n2.told()
		time.Sleep(time.Second)
		w.stop()
		n1.want("its task drains", "networks a/t1:draining a/t2:active")
		time.Sleep(2*time.Second - time.Nanosecond)
		n1.want("just before", "")
		time.Sleep(time.Nanosecond)
		n1.want("two seconds later", "t1 is to be shutdown")
	})
}

func TestSpread_StopsATaskAtOnceIf(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(w *world) // after which t1 is stopped
	}{
		{"nobody else is up", func(w *world) { w.down("n2") }},
		{"it is on no network", func(w *world) {
			w.edit("t1", func(t *object.Task) { t.Networks = nil })
			synctest.Wait()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
				w.networked()
				n1, n2 := w.join("n1"), w.join("n2")
				n1.told()
				n2.told()
				n1.programmed()
				test.do(w)
				n1.told()
				n1.programmed()
				w.stop()
				got := n1.told()
				n1.programmed()
				if got += n1.told(); !strings.HasSuffix(got, "t1 is to be shutdown") {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

// A node that has no session any more leads where it did, until it is down.
func TestSpread_StopsATaskWhenTheLastOneWaitedForIsDown(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		n1, n2 := w.join("n1"), w.join("n2")
		n1.told()
		n2.told()
		n1.programmed()
		w.stop()
		n1.told()
		n1.programmed()
		n1.want("before", "")
		_ = n2.close()
		n1.want("without a session", "")
		w.down("n2")
		n1.want("when it is down", "networks a/t1:draining a/t2:draining; t1 is to be shutdown")
	})
}

// What a node says of its own tasks is stored, and the others follow.
func TestSpread_TellsOthersWhatANodeLeadsNothingTo(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		w.on("over", "n1", swarm.TaskStateFailed)
		n1, n2 := w.join("n1"), w.join("n2")
		n1.told()
		n2.told()
		n2.programmed()
		leave := func(tasks ...string) {
			n1.send(&wire.Message{Programmed: &wire.Programmed{Networks: n1.now.Version, Leaving: tasks}})
			synctest.Wait()
		}
		leave("t1", "t2", "over", "unknown") // of which only t1 is its to tell of
		n2.want("that it leaves", "networks a/t1:draining a/t2:active")
		n2.programmed()
		n1.want("that it leaves", "networks a/t1:draining a/t2:active") // and no stop
		leave("t1")
		n2.want("the same again", "")
		leave()
		n2.want("that it stays", "networks a/t1:active a/t2:active")
		if o, _ := w.store.Snapshot().Tasks.Get("over"); o.Leaving {
			t.Error("it is stored of a task that is over")
		}
	})
}

// A node that has not programmed the last news yet gets what comes meanwhile
// together, and not after it is due.
func TestSpread_GathersNewsForABusyNode(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		n2 := w.join("n2")
		n2.told()
		n2.programmed()
		for i := range 3 {
			w.on(fmt.Sprint("u", i), "n1", swarm.TaskStateAssigned)
			synctest.Wait()
		}
		n2.want("at once", "networks a/t1:active a/t2:active a/u0:prepared")
		n2.programmed()
		n2.want("together", "networks a/t1:active a/t2:active a/u0:prepared a/u1:prepared a/u2:prepared")
		w.on("u3", "n1", swarm.TaskStateAssigned)
		n2.want("while it is busy", "")
		time.Sleep(200 * time.Millisecond)
		n2.want("after a while", "networks a/t1:active a/t2:active a/u0:prepared a/u1:prepared a/u2:prepared a/u3:prepared")
		w.on("u4", "n2", swarm.TaskStateAssigned)
		n2.want("with a task", "networks a/t1:active a/t2:active a/u0:prepared a/u1:prepared a/u2:prepared a/u3:prepared a/u4:prepared; u4 is to be running")
	})
}

// What a node is told first may be more than fits a frame, and it beats meanwhile.
func TestSpread_TellsManyEndpointsInParts(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.networked()
		for i := 0; i < 12000; i += 1000 {
			w.store.Write(t, func(tx *store.Tx) {
				for j := i; j < i+1000; j++ {
					o := &object.Task{ID: fmt.Sprintf("x%024d", j), ServiceID: "a-service-with-a-long-name", NodeID: "n1", DesiredState: swarm.TaskStateRunning}
					o.Status.State = swarm.TaskStateRunning
					o.Networks = []object.TaskNetwork{{ID: "a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}, Aliases: []string{"an-alias-of-it"}}}
					tx.Create(o)
				}
			})
		}
		n2 := w.join("n2")
		if got := n2.told(); !strings.HasPrefix(got, "a part; networks a/t1:active") || !strings.HasSuffix(got, "; t2 is to be running") {
			t.Errorf("got %.60q … %q", got, got[max(0, len(got)-60):])
		}
		if n := len(n2.now.Networks["a"].Endpoints); n != 12002 {
			t.Errorf("%d endpoints", n)
		}
	})
}
