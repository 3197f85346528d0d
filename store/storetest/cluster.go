package storetest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/replica"
)

// Config is what a cluster is to be like.
type Config struct {
	Size   int
	Seed   uint64
	Timing replica.Timing // zero is that of production
	// Lead, if there is one, is what a member does while it leads.
	Lead func(ctx context.Context, c *Cluster, name string, m *replica.Member) error
	// Trace is nil for tests that look for themselves.
	Trace *Trace
	// Wrap, if there is one, changes a member's transport.
	Wrap func(raft.Transport) raft.Transport
}

// Cluster is a group of real members with production timing over a network and
// disks in memory. It lives in a synctest bubble, whose clock it needs, and
// ends with the test.
//
// It watches over its members: no two of them lead in one term, and all have
// the same state at the same index.
type Cluster struct {
	Net   *Network
	Trace *Trace
	tb    testing.TB
	cfg   Config
	nodes []*node
	runs  sync.WaitGroup // of members, also of those that crashed

	mu      sync.Mutex
	leaders map[[2]uint64]string            // by epoch and term
	digests map[[2]uint64][sha256.Size]byte // by epoch and index
}

// node is a machine. All but its name is guarded by the cluster's mu.
type node struct {
	name   string
	id     string // of the member; another one after it was removed
	stints int
	disk   *Disk
	epoch  uint64
	member *replica.Member // nil while it is down
	end    *Endpoint
	cancel context.CancelFunc
	done   chan struct{}
}

// NewCluster starts a group of voters.
func NewCluster(tb testing.TB, cfg Config) *Cluster {
	tb.Helper()
	c := &Cluster{
		Net: NewNetwork(), Trace: cfg.Trace, tb: tb, cfg: cfg,
		leaders: map[[2]uint64]string{}, digests: map[[2]uint64][sha256.Size]byte{},
	}
	if c.Trace == nil {
		c.Trace = new(Trace)
		tb.Cleanup(func() {
			for _, v := range c.Trace.Violations() {
				tb.Error(v)
			}
		})
	}
	var conf raft.Configuration
	for i := range cfg.Size {
		n := &node{name: fmt.Sprint("n", i+1), id: fmt.Sprint("n", i+1), disk: NewDisk(cfg.Seed*16 + uint64(i))}
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(n.name), Address: raft.ServerAddress(n.name)})
		c.nodes = append(c.nodes, n)
	}
	for i, n := range c.nodes {
		rc := raft.DefaultConfig()
		rc.LocalID = raft.ServerID(n.name)
		_, wire := raft.NewInmemTransport(raft.ServerAddress(n.name))
		if err := raft.BootstrapCluster(rc, n.disk, n.disk, n.disk, wire, conf); err != nil {
			tb.Fatal(err)
		}
		c.Start(i)
	}
	tb.Cleanup(c.end)
	return c
}

func (c *Cluster) end() {
	c.Net.Heal()
	for i := range c.nodes {
		c.Crash(i)
	}
	c.runs.Wait()
	<-time.After(time.Minute) // Raft's last calls run into their timeouts
}

// Size is how many members there are, up or down.
func (c *Cluster) Size() int { return len(c.nodes) }

// Name is the host name of a member.
func (c *Cluster) Name(i int) string { return c.nodes[i].name }

// Disk is what a member writes to until it crashes.
func (c *Cluster) Disk(i int) *Disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i].disk
}

// Member is a member, or nil while it is down.
func (c *Cluster) Member(i int) *replica.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i].member
}

// named is the member on a host, or nil while it is down.
func (c *Cluster) named(host string) *replica.Member {
	for i, n := range c.nodes {
		if n.name == host {
			return c.Member(i)
		}
	}
	return nil
}

// Start starts a member that is down.
func (c *Cluster) Start(i int) {
	c.tb.Helper()
	n := c.nodes[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.member != nil {
		return
	}
	timing := c.cfg.Timing
	// Simulated time costs what is said in it, and this is most of what is said.
	timing.Commit = cmp.Or(timing.Commit, 50*time.Millisecond)
	log := slog.New(slog.DiscardHandler)
	n.end = c.Net.Listen(n.name, n.epoch)
	wire := raft.Transport(&observed{replica.NewTransport(n.end, log).(*raft.NetworkTransport), c, n.name, n.epoch})
	if c.cfg.Wrap != nil {
		wire = c.cfg.Wrap(wire)
	}
	m, err := replica.Open(replica.Config{
		ID: n.id, NodeID: n.name, ClusterID: "test", Transport: wire, Timing: timing, Forward: forwarder{c, n},
		Stores: &replica.Stores{Log: n.disk, Stable: n.disk, Snapshots: n.disk}, Logger: log,
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.tb.Context())
	n.member, n.cancel, n.done = m, cancel, make(chan struct{})
	epoch, end, done := n.epoch, n.end, n.done
	c.runs.Go(func() {
		defer close(done)
		defer cancel()
		err := m.Run(ctx, c.lead(n.name, m))
		_ = end.Close()
		c.ended(n, m, err)
	})
	c.runs.Go(func() { c.watch(ctx, n.name, epoch, m) })
}

func (c *Cluster) lead(name string, m *replica.Member) func(context.Context) error {
	if c.cfg.Lead == nil {
		return nil
	}
	return func(ctx context.Context) error { return c.cfg.Lead(ctx, c, name, m) }
}

// ended notes the end of a member, which may have crashed before.
func (c *Cluster) ended(n *node, m *replica.Member, err error) {
	c.mu.Lock()
	mine := n.member == m
	if mine {
		n.member = nil
		n.disk = n.disk.Crash() // what Raft still hangs in goes nowhere
	}
	c.mu.Unlock()
	switch {
	case !mine || err == nil || errors.Is(err, replica.ErrRemoved):
	case errors.Is(err, errDisk), errors.Is(err, replica.ErrStalled), errors.Is(err, replica.ErrHangs):
		c.Trace.Log("%s died: %v", n.name, err)
	default:
		c.Trace.Violate("%s ended: %v", n.name, err)
	}
}

// Crash takes a member down without a word to the others. On its disk is what
// was there at that moment.
func (c *Cluster) Crash(i int) {
	c.mu.Lock()
	n := c.nodes[i]
	if n.member == nil {
		c.mu.Unlock()
		return
	}
	n.member = nil
	n.disk = n.disk.Crash()
	end, cancel := n.end, n.cancel
	c.mu.Unlock()
	_ = end.Close()
	cancel() // it ends in its own time, and can do no more harm
}

// Stop ends a member in an orderly way.
func (c *Cluster) Stop(i int) {
	c.mu.Lock()
	n := c.nodes[i]
	up, cancel, done := n.member != nil, n.cancel, n.done
	c.mu.Unlock()
	if up {
		cancel()
		<-done
	}
}

// Partition cuts the group in two: those named, and the others.
func (c *Cluster) Partition(side ...int) {
	in := map[*node]bool{}
	for _, i := range side {
		in[c.nodes[i]] = true
	}
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				c.Net.Cut(a.name, b.name, in[a] != in[b])
			}
		}
	}
}

// Heal undoes Partition.
func (c *Cluster) Heal() { c.Partition() }

// Leader is a member that leads, and can prove it, after a while at most, or -1.
func (c *Cluster) Leader() int {
	for range 600 {
		for i := range c.nodes {
			m := c.Member(i)
			if m == nil || !m.Leading() {
				continue
			}
			if _, err := m.Read(c.tb.Context()); err == nil {
				return i
			}
		}
		<-time.After(100 * time.Millisecond)
	}
	c.Trace.Violate("no leader")
	return -1
}

// watch compares the states that a member has with those of the others.
func (c *Cluster) watch(ctx context.Context, name string, epoch uint64, m *replica.Member) {
	for last := uint64(0); ; {
		ch := m.Since(last)
		if i := ch.Snapshot.Index; i != last && i%4 == 0 {
			c.compare(name, epoch, ch.Snapshot)
		}
		last = ch.Snapshot.Index
		select {
		case <-ctx.Done():
			return
		case <-ch.News:
		}
	}
}

// Led is the host that led in the newest term, and so the only one that may
// lead now.
func (c *Cluster) Led() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	newest, name := [2]uint64{}, ""
	for k, n := range c.leaders {
		if k[0] > newest[0] || k[0] == newest[0] && k[1] > newest[1] {
			newest, name = k, n
		}
	}
	return name
}

// Digest is the same for equal states.
func Digest(s *store.Snapshot) (sum [sha256.Size]byte) {
	h := sha256.New()
	_ = s.Save(h) // a hash does not fail
	h.Sum(sum[:0])
	return sum
}

func (c *Cluster) compare(name string, epoch uint64, s *store.Snapshot) {
	sum := Digest(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	k := [2]uint64{epoch, s.Index}
	if was, ok := c.digests[k]; ok && was != sum {
		c.Trace.Violate("the state of %s at index %d is not that of the others", name, s.Index)
	}
	c.digests[k] = sum
}

// observed is a transport that notes who leads.
type observed struct {
	*raft.NetworkTransport
	c     *Cluster
	name  string
	epoch uint64
}

func (o *observed) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	o.c.led(o.epoch, req.Term, o.name)
	return o.NetworkTransport.AppendEntries(id, to, req, resp)
}

func (c *Cluster) led(epoch, term uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := [2]uint64{epoch, term}
	switch was, ok := c.leaders[k]; {
	case !ok:
		c.leaders[k] = name
		c.Trace.Log("%s leads in term %d", name, term)
	case was != name:
		c.Trace.Violate("%s and %s lead in term %d", was, name, term)
	}
}
