package dispatcher_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func TestServe_ReportsThatNoCommandHoldsAreWrittenInParts(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		const nodes = 60 // of 50 KB each: twice what fits in a command
		ends := make(chan error, nodes)
		var conns []net.Conn
		for i := range nodes {
			n := &object.Node{}
			n.ID, n.Status.State = fmt.Sprintf("big%02d", i), swarm.NodeStateDown
			w.store.Write(t, func(tx *store.Tx) { tx.Create(n) })
			here, there := net.Pipe()
			conns = append(conns, here)
			go func() { ends <- w.d.Serve(t.Context(), there, pki.Node{ID: n.ID}) }() // waited for below
		}
		desc := swarm.NodeDescription{Hostname: strings.Repeat("x", 50<<10)}
		synctest.Wait()
		for _, c := range conns {
			if err := wire.NewConn(c).Send(&wire.Message{Hello: &wire.Hello{Protocol: wire.Protocol, Description: desc}}, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for i := range nodes {
			if n := w.node(fmt.Sprintf("big%02d", i)); n.Status.State != swarm.NodeStateReady || len(n.Description.Hostname) != 50<<10 {
				t.Fatalf("node %s is %s", n.ID, n.Status.State)
			}
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestServe_RefusesToBeBurdened(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		a.send(&wire.Message{Describe: &wire.Describe{Description: swarm.NodeDescription{Hostname: strings.Repeat("x", 65<<10)}}})
		if ended, _ := a.ended(); !ended {
			t.Error("the session of a node that describes itself at length goes on")
		}
		if n := w.node("n1"); n.Description.Hostname != "n1.local" {
			t.Errorf("the description is %d bytes", len(n.Description.Hostname))
		}
	})
}

// slow is a store that takes its time to write.
type slow struct{ *storetest.Local }

func (s slow) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	select {
	case <-time.After(10 * time.Second):
		return s.Local.Propose(ctx, tx)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func TestServe_EndsASessionThatReportsTooFast(t *testing.T) {
	runOn(t, func(s *storetest.Local) store.Proposer { return slow{s} }, nil, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		a, _ := w.dial()
		var err error
		n := uint64(0)
		for ; err == nil && n < 1000; n++ {
			err = a.conn.Send(&wire.Message{Statuses: &wire.Statuses{Sequence: n}}, time.Second)
		}
		if ended, why := a.ended(); !ended || n > 70 {
			t.Errorf("after %d reports: %v, ended %t, %v", n, err, ended, why)
		}
		if _, m := w.dial(); m.Welcome == nil {
			t.Errorf("a new session: %+v", m)
		}
	})
}
