package control_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
)

// trio is three managers that know of each other, with a layer each.
type trio struct {
	*world
	ids    []*control.Identity
	ports  []*control.Port
	layers []raft.StreamLayer
	stops  []func()
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	w := newWorld(t)
	w.stop()
	m := &trio{world: w}
	var peers sync.Map
	resolve := func(id string) string {
		p, _ := peers.Load(id)
		peer, _ := p.(wire.Peer)
		return peer.Addr
	}
	for i := range 3 {
		id := w.Manager(t, fmt.Sprintf("m%d", i+1), 1)
		w.book.set(id.NodeID, pki.Manager, 0)
		get := func() *control.Identity { return id }
		d := control.NewDialer(control.DialerConfig{Identity: get, Resolve: resolve, Logger: logger(t)})
		t.Cleanup(d.Close)
		port, peer, stop := w.open(t, get, d)
		peers.Store(id.NodeID, peer)
		m.ids, m.ports, m.stops = append(m.ids, id), append(m.ports, port), append(m.stops, stop)
		m.layers = append(m.layers, port.Layer(t.Context()))
	}
	return m
}

// exchange sends a byte from one to another and back.
func exchange(a, b net.Conn) error {
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := p[0].Write([]byte("x")); err != nil {
			return err
		}
		if _, err := io.ReadFull(p[1], make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

// pair is a Raft connection from one of the trio to another.
func (m *trio) pair(t *testing.T, from, to int) (a, b net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := m.layers[to].Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
		}
		accepted <- c
	}()
	a, err := m.layers[from].Dial(raft.ServerAddress(m.ids[to].NodeID), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if b = <-accepted; b == nil {
		t.FailNow()
	}
	if err := exchange(a, b); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestLayer_CarriesRaft(t *testing.T) {
	m := newTrio(t)
	var config raft.Configuration
	members := make([]*raft.Raft, 3)
	for i, id := range m.ids {
		config.Servers = append(config.Servers, raft.Server{ID: raft.ServerID("r" + id.NodeID), Address: raft.ServerAddress(id.NodeID)})
		if got := m.layers[i].Addr().String(); got != id.NodeID {
			t.Errorf("address of member %s: got %s", id.NodeID, got)
		}
	}
	for i, s := range config.Servers {
		c := raft.DefaultConfig()
		c.LocalID, c.Logger = s.ID, hclog.NewNullLogger()
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond, 5*time.Millisecond
		store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		trans := raft.NewNetworkTransport(m.layers[i], 3, 5*time.Second, io.Discard)
		t.Cleanup(func() { _ = trans.Close() })
		if err := raft.BootstrapCluster(c, store, store, snaps, trans, config); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(c, &raft.MockFSM{}, store, store, snaps, trans)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Shutdown().Error() })
		members[i] = r
	}
	leader := await(t, members, nil)
	for range 20 {
		if err := members[leader].Apply([]byte("x"), 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
	m.stops[leader]()
	_ = m.layers[leader].Close()
	next := await(t, members, members[leader])
	if err := members[next].Apply([]byte("x"), 5*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	if got := members[next].AppliedIndex(); got < 21 {
		t.Errorf("applied on the new leader: got %d", got)
	}
}

// await waits for a leader other than one.
func await(t *testing.T, members []*raft.Raft, other *raft.Raft) int {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for i, r := range members {
			if r != other && r.State() == raft.Leader {
				return i
			}
		}
	}
	t.Fatal("no leader in 10 s")
	return 0
}

func TestLayer_RefusesInWords(t *testing.T) {
	m := newTrio(t)
	dial := func(to string) error {
		_, err := m.layers[0].Dial(raft.ServerAddress(to), 5*time.Second)
		return err
	}
	if err := dial("m9"); err == nil || !strings.Contains(err.Error(), "its address is not known") {
		t.Errorf("unknown member: got %v", err)
	}
	m.ids[1].Epoch = 2
	if err := dial("m2"); err == nil || !strings.Contains(err.Error(), "recovered with --force-new-cluster without node m1") {
		t.Errorf("later epoch: got %v", err)
	}
	m.ids[1].Epoch = 0
	if err := dial("m2"); err == nil || !strings.Contains(err.Error(), "recovered with --force-new-cluster without manager m2") {
		t.Errorf("earlier epoch: got %v", err)
	}
	_ = m.layers[2].Close()
	if err := dial("m3"); err == nil || !strings.Contains(err.Error(), "node m3 runs no replica") {
		t.Errorf("no replica: got %v", err)
	}
	_ = m.layers[0].Close()
	if err := dial("m2"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed layer: got %v", err)
	}
}
