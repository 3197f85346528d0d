package storetest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/store/replica"
)

// Cluster is a group of real members with production timing, in memory. It
// lives in a synctest bubble, whose clock it needs, and ends with the test.
type Cluster struct {
	tb    testing.TB
	nodes []*node
	mu    sync.Mutex // guards who is up and who is cut off
}

type node struct {
	id     string
	stores replica.Stores // outlive a crash
	cut    map[*node]bool // who cannot be talked to
	wire   *raft.InmemTransport
	member *replica.Member // nil while it is down
	cancel context.CancelFunc
	done   chan error
}

// NewCluster starts a group of size voters.
func NewCluster(tb testing.TB, size int) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb}
	var conf raft.Configuration
	for i := range size {
		mem := raft.NewInmemStore()
		n := &node{id: fmt.Sprint("n", i+1), stores: replica.Stores{Log: mem, Stable: mem, Snapshots: raft.NewInmemSnapshotStore()}, cut: map[*node]bool{}}
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(n.id), Address: raft.ServerAddress(n.id)})
		c.nodes = append(c.nodes, n)
	}
	for i, n := range c.nodes {
		rc := raft.DefaultConfig()
		rc.LocalID = raft.ServerID(n.id)
		_, wire := raft.NewInmemTransport(raft.ServerAddress(n.id))
		if err := raft.BootstrapCluster(rc, n.stores.Log, n.stores.Stable, n.stores.Snapshots, wire, conf); err != nil {
			tb.Fatal(err)
		}
		c.Start(i)
	}
	tb.Cleanup(func() {
		for i := range c.nodes {
			c.Crash(i)
		}
		<-time.After(time.Minute) // Raft's last calls run into their timeouts
	})
	return c
}

// Start starts a member that is down.
func (c *Cluster) Start(i int) {
	c.tb.Helper()
	n := c.nodes[i]
	if n.member != nil {
		return
	}
	_, n.wire = raft.NewInmemTransport(raft.ServerAddress(n.id))
	m, err := replica.Open(replica.Config{
		ID: n.id, NodeID: n.id, ClusterID: "test", Transport: n.wire, Stores: &n.stores, Forward: forwarder{c, n}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.tb.Context())
	c.mu.Lock()
	n.member, n.cancel, n.done = m, cancel, make(chan error, 1)
	c.mu.Unlock()
	go func() { n.done <- m.Run(ctx, nil) }() // until Crash, at the latest at the end of the test
	c.connect()
}

// Crash takes a member down without a word to the others.
func (c *Cluster) Crash(i int) {
	c.tb.Helper()
	n := c.nodes[i]
	if n.member == nil {
		return
	}
	n.wire.DisconnectAll()
	for _, o := range c.nodes {
		if o.member != nil {
			o.wire.Disconnect(raft.ServerAddress(n.id))
		}
	}
	n.cancel()
	if err := <-n.done; err != nil {
		c.tb.Errorf("member %d ended: %v", i, err)
	}
	c.mu.Lock()
	n.member = nil
	c.mu.Unlock()
}

// Partition cuts the group in two: those named, and the others.
func (c *Cluster) Partition(side ...int) {
	in := map[*node]bool{}
	for _, i := range side {
		in[c.nodes[i]] = true
	}
	c.mu.Lock()
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			a.cut[b] = in[a] != in[b]
		}
	}
	c.mu.Unlock()
	c.connect()
}

// Heal undoes Partition.
func (c *Cluster) Heal() { c.Partition() }

// connect makes the wires be as they should.
func (c *Cluster) connect() {
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			switch {
			case a == b || a.member == nil || b.member == nil:
			case a.cut[b]:
				a.wire.Disconnect(raft.ServerAddress(b.id))
			default:
				a.wire.Connect(raft.ServerAddress(b.id), b.wire)
			}
		}
	}
}

// Member is a member, or nil while it is down.
func (c *Cluster) Member(i int) *replica.Member { return c.nodes[i].member }

// Leader is a member that leads, and can prove it, after a while at most.
func (c *Cluster) Leader() int {
	c.tb.Helper()
	for range 300 {
		for i, n := range c.nodes {
			if n.member == nil || !n.member.Leading() {
				continue
			}
			if _, err := n.member.Read(c.tb.Context()); err == nil {
				return i
			}
		}
		<-time.After(100 * time.Millisecond)
	}
	c.tb.Fatal("no leader")
	return -1
}
