package dispatcher_test

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// encrypt makes an encrypted network with a running task on each node.
func (w *world) encrypt(nodes ...string) {
	w.Helper()
	w.store.Write(w.T, func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: "c", TunnelKeys: object.KeyRing{Version: 3, Keys: [][]byte{[]byte("key")}}})
		n := &object.Network{VNI: 4096}
		n.ID, n.Spec.Name = "net", "net"
		n.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay", Options: map[string]string{object.OptionEncrypted: ""}}
		n.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{
			Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1"),
		}}}
		tx.Create(n)
		for i, node := range nodes {
			t := &object.Task{ID: "t-" + node, NodeID: node, DesiredState: swarm.TaskStateRunning}
			t.Status.State = swarm.TaskStateRunning
			addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}), 24)
			t.Networks = []object.TaskNetwork{{ID: "net", Addresses: []netip.Prefix{addr}}}
			tx.Create(t)
		}
	})
}

// meet begins the session of a node that is at an address.
func (w *world) meet(node, addr, boot string) *wire.Conn {
	w.Helper()
	c, err := w.d.Dial(w.Context(), node)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.Close() })
	conn := wire.NewConn(c)
	hello := &wire.Hello{Protocol: wire.Protocol, Description: swarm.NodeDescription{Hostname: node}, DataPath: addr, Boot: boot}
	if err := conn.Send(&wire.Message{Hello: hello}, time.Minute); err != nil {
		w.Fatal(err)
	}
	return conn
}

// tunnels is the last of what a node is told of its tunnels now, nil if it is
// told nothing.
func (w *world) tunnels(c *wire.Conn) (last *wire.Tunnels) {
	w.Helper()
	for {
		m, err := c.Receive(time.Second) // of the bubble's time: all there is to say is said by then
		if err != nil {
			return last
		}
		if m.Tunnels != nil {
			last = m.Tunnels
		}
	}
}

func TestTunnels_GoToThoseWhoShareAnEncryptedNetwork(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.store.Write(t, func(tx *store.Tx) {
			n := &object.Node{}
			n.ID = "n3"
			tx.Create(n)
		})
		w.encrypt("n1", "n2")
		c1, c2, c3 := w.meet("n1", "192.0.2.1", "a"), w.meet("n2", "192.0.2.2", "b"), w.meet("n3", "192.0.2.3", "c")
		synctest.Wait()
		var got [3]*wire.Tunnels
		for i, c := range []*wire.Conn{c1, c2, c3} {
			got[i] = w.tunnels(c)
		}
		if got[2] != nil {
			t.Errorf("n3 is told %d pairs, and is on no encrypted network", len(got[2].Pairs))
		}
		one, two := got[0], got[1]
		if one == nil || two == nil || one.Version != 3 || len(one.Pairs) != 1 || len(two.Pairs) != 1 {
			t.Fatalf("told: %+v and %+v, want a pair each", one, two)
		}
		if p := one.Pairs[0]; p.Node != "n2" || p.Address != netip.MustParseAddr("192.0.2.2") || len(p.In) != 1 {
			t.Errorf("n1 has %+v", p)
		}
		if diff := cmp.Diff(*one.Pairs[0].Out, two.Pairs[0].In[0]); diff != "" {
			t.Errorf("what n1 sends with and n2 receives with:\n%s", diff)
		}
	})
}

func TestTunnels_AreNewWhenANodeHasLostItsKeys(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.encrypt("n1", "n2")
		c1, c2 := w.meet("n1", "192.0.2.1", "a"), w.meet("n2", "192.0.2.2", "b")
		before := w.tunnels(c1)
		_ = w.tunnels(c2)
		d := &wire.Describe{Description: swarm.NodeDescription{Hostname: "n2"}, DataPath: "192.0.2.2", Boot: "b again"}
		if err := c2.Send(&wire.Message{Describe: d}, time.Minute); err != nil {
			t.Fatal(err)
		}
		after, mine := w.tunnels(c1), w.tunnels(c2)
		if before == nil || after == nil || mine == nil {
			t.Fatalf("told: %v, then %v and %v", before, after, mine)
		}
		if bytes.Equal(before.Pairs[0].Out.Key, after.Pairs[0].Out.Key) || !bytes.Equal(after.Pairs[0].Out.Key, mine.Pairs[0].In[0].Key) {
			t.Error("the keys did not change on both sides")
		}
	})
}

func TestHaveTunnels_WaitsForThoseWhoWereTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) { //nolint:thelper // the body of the test
		w.encrypt("n1", "n2")
		if !w.d.HaveTunnels(3) {
			t.Error("waits for nodes that have no session")
		}
		c1, c2 := w.meet("n1", "192.0.2.1", "a"), w.meet("n2", "192.0.2.2", "b")
		for i, c := range []*wire.Conn{c1, c2} {
			_ = w.tunnels(c)
			if w.d.HaveTunnels(3) {
				t.Errorf("%d of 2 have programmed their keys, and nobody is waited for", i)
			}
			if err := c.Send(&wire.Message{Programmed: &wire.Programmed{Tunnels: 3}}, time.Minute); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if !w.d.HaveTunnels(3) || w.d.HaveTunnels(4) {
			t.Errorf("have version 3: %v, and 4: %v", w.d.HaveTunnels(3), w.d.HaveTunnels(4))
		}
	})
}
