package replica_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/store/replica"
)

// group is members of one group, each with what a test gave it. The first
// founds the group and lets the others in.
type group struct {
	tb      testing.TB
	members []*replica.Member
	done    []chan error // what Run returned
	cancel  []context.CancelFunc
}

func newGroup(tb testing.TB, size int, config func(i int) replica.Config) *group {
	tb.Helper()
	g := &group{tb: tb, members: make([]*replica.Member, size), done: make([]chan error, size), cancel: make([]context.CancelFunc, size)}
	tb.Cleanup(g.end)
	for i := range size {
		cfg := config(i)
		cfg.Bootstrap = i == 0
		g.start(i, cfg)
		if i == 0 {
			<-g.members[0].Ready()
		} else if err := g.members[0].AddVoter(tb.Context(), cfg.ID, cfg.NodeID); err != nil {
			tb.Fatal(err)
		}
	}
	return g
}

func (g *group) start(i int, cfg replica.Config) {
	g.tb.Helper()
	m, err := replica.Open(cfg)
	if err != nil {
		g.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(g.tb.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, nil); close(done) }() // until the end of the test
	g.members[i], g.done[i], g.cancel[i] = m, done, cancel
}

func (g *group) end() {
	for i := range g.members {
		if g.cancel[i] != nil {
			g.cancel[i]()
		}
	}
	for i := range g.members {
		if g.done[i] != nil {
			for range g.done[i] { // some fail, as they should
			}
		}
	}
}

// endInBubble also lets Raft's last calls run into their timeouts.
func (g *group) endInBubble() {
	g.end()
	time.Sleep(time.Minute)
}

func (g *group) stop(i int) {
	g.tb.Helper()
	g.cancel[i]()
	if err := <-g.done[i]; err != nil {
		g.tb.Errorf("member %d: %v", i, err)
	}
}

// leader is one that leads, other than those named.
func (g *group) leader(not ...int) int {
	g.tb.Helper()
	for range 600 {
	members:
		for i, m := range g.members {
			for _, n := range not {
				if i == n {
					continue members
				}
			}
			if m.Leading() {
				if _, err := m.Read(g.tb.Context()); err == nil && m.Leading() {
					return i
				}
			}
		}
		<-time.After(50 * time.Millisecond)
	}
	g.tb.Fatal("no leader")
	return -1
}

func memberName(i int) string { return fmt.Sprint("m", i+1) }
func nodeName(i int) string   { return fmt.Sprint("n", i+1) }

// inMemory configures members that are connected within the process.
func inMemory(wires []*raft.InmemTransport, wrap func(i int, cfg *replica.Config)) func(i int) replica.Config {
	for i := range wires {
		_, wires[i] = raft.NewInmemTransport(raft.ServerAddress(nodeName(i)))
	}
	for _, a := range wires {
		for _, b := range wires {
			if a != b {
				a.Connect(b.LocalAddr(), b)
			}
		}
	}
	return func(i int) replica.Config {
		mem := raft.NewInmemStore()
		cfg := replica.Config{
			ID: memberName(i), NodeID: nodeName(i), ClusterID: "c", Transport: wires[i],
			Stores: &replica.Stores{Log: mem, Stable: mem, Snapshots: raft.NewInmemSnapshotStore()},
			Logger: slog.New(slog.DiscardHandler),
		}
		if wrap != nil {
			wrap(i, &cfg)
		}
		return cfg
	}
}

// mesh connects nodes over TCP on loopback, each connection begins with a
// line that names the swarm's epoch.
type mesh struct {
	mu    sync.Mutex
	nodes map[string]*layer // guarded by mu
}

// layer is the raft.StreamLayer of a node.
type layer struct {
	net.Listener
	mesh  *mesh
	id    string
	epoch int  // written before it is used
	check bool // whether it looks at the epoch
	down  bool // guarded by mesh.mu, as are conns
	conns map[net.Conn]bool
}

func (m *mesh) layer(tb testing.TB, id string) *layer {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	n := &layer{Listener: l, mesh: m, id: id, check: true, conns: map[net.Conn]bool{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes == nil {
		m.nodes = map[string]*layer{}
	}
	m.nodes[id] = n
	return n
}

// isolate cuts a node off, or lets it talk again.
func (m *mesh) isolate(id string, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	n.down = cut
	for c := range n.conns {
		if cut {
			_ = c.Close() // whoever uses it notices
		}
	}
}

var errCut = errors.New("no route to host")

func (n *layer) keep(c net.Conn) error {
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	if n.down {
		return errors.Join(errCut, c.Close())
	}
	n.conns[c] = true
	return nil
}

func (n *layer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	n.mesh.mu.Lock()
	peer, down := n.mesh.nodes[string(to)], n.down
	down = down || peer == nil || peer.down
	n.mesh.mu.Unlock()
	if down {
		return nil, errCut
	}
	c, err := net.DialTimeout("tcp", peer.Listener.Addr().String(), timeout)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "%d\n", n.epoch); err != nil {
		return nil, err
	}
	return c, n.keep(c)
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

func (n *layer) Accept() (net.Conn, error) {
	for {
		c, err := n.Listener.Accept()
		if err != nil {
			return nil, err
		}
		r := bufio.NewReader(c)
		hello, err := r.ReadString('\n')
		if err == nil && n.check && hello != fmt.Sprintf("%d\n", n.epoch) {
			err = errors.New("of another epoch")
		}
		if err == nil {
			err = n.keep(c)
		}
		if err == nil {
			return &bufferedConn{c, r}, nil
		}
		_ = c.Close() // refused
	}
}

func (n *layer) Addr() net.Addr { return nodeAddr(n.id) }

type nodeAddr string

func (nodeAddr) Network() string  { return "node" }
func (a nodeAddr) String() string { return string(a) }

// Propose and ReadIndex implement replica.Forwarder within the process.
type direct struct{ g func() *group }

func (d direct) member(leader string) *replica.Member {
	for i, m := range d.g().members {
		if nodeName(i) == leader {
			return m
		}
	}
	return nil
}

func (d direct) Propose(ctx context.Context, leader string, command []byte) (uint64, error) {
	return replica.NewAnswer(d.member(leader).Accept(ctx, command)).Result()
}

func (d direct) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	return replica.NewAnswer(d.member(leader).ReadIndex(ctx)).Result()
}

// onDisk configures a member with sealed files and TCP.
func onDisk(tb testing.TB, m *mesh, dir string, i int) replica.Config {
	tb.Helper()
	cfg := config(tb, filepath.Join(dir, memberName(i)))
	cfg.ID, cfg.NodeID, cfg.Bootstrap = memberName(i), nodeName(i), false
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Transport = replica.NewTransport(m.layer(tb, cfg.NodeID), cfg.Logger)
	return cfg
}
