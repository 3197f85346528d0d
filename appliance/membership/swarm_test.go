package membership_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/config"
	"skep/appliance/membership"
	"skep/pki/identity"
	"skep/store"
	"skep/store/object"
)

// world is a swarm in one process: real memberships that talk over loopback,
// each on an address of its own, and machines that only pretend to run tasks.
type world struct {
	*testing.T
	nodes []*node
}

type node struct {
	*membership.Membership
	t    *testing.T
	name string
	addr string
	dir  string
	file config.Swarm
	m    *machine
	keys *identity.Keystore
	// gossip is what the node was told of it last.
	gossip atomic.Pointer[membership.Gossip]
	stop   context.CancelFunc
	done   chan error
}

// add starts a node that is in no swarm, at 127.1.0.<number>.
func (w *world) add(name string) *node {
	w.Helper()
	n := &node{t: w.T, name: name, addr: fmt.Sprintf("127.1.0.%d", len(w.nodes)+1), dir: w.TempDir()}
	n.file = config.Swarm{Listen: n.addr + ":2377", Availability: "active"}
	w.nodes = append(w.nodes, n)
	n.start()
	w.Cleanup(func() {
		if n.stop != nil {
			n.shut()
		}
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	keys, err := identity.Open(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.keys, n.m = keys, &machine{tasks: map[string]bool{}}
	links := func() ([]membership.Link, error) {
		return []membership.Link{{Name: "lo", Addrs: []netip.Addr{netip.MustParseAddr(n.addr)}}}, nil
	}
	n.Membership = membership.New(membership.Config{
		File: n.file, Dir: n.dir, Keys: keys, Executor: n.m, Links: links,
		Describe: n.describe,
		Gossip:   func(g membership.Gossip) { n.gossip.Store(&g) },
		Logger:   slog.New(slog.NewTextHandler(n.t.Output(), nil)).With("node", n.name),
	})
	n.m.describe = func() swarm.NodeDescription { return n.describe(n.TLSInfo()) }
	ctx, stop := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }() // until shut
	n.stop, n.done = stop, done
}

func (n *node) describe(tls swarm.TLSInfo) swarm.NodeDescription {
	return swarm.NodeDescription{Hostname: n.name, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}, TLSInfo: tls}
}

// shut ends the node's process.
func (n *node) shut() {
	n.t.Helper()
	n.stop()
	if err := <-n.done; err != nil {
		n.t.Errorf("node %s ended: %v", n.name, err)
	}
	if err := n.keys.Close(); err != nil {
		n.t.Error(err)
	}
	n.stop = nil
}

// until waits for what the test is about, with a bound that only a failure reaches.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("%s: not within a minute\n%s", what, w.table())
		}
	}
}

// table is the swarm as its managers see it.
func (w *world) table() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s: %s\n", n.name, strings.Join(n.seen(), "; "))
	}
	return b.String()
}

// seen lists the nodes as this one knows them: "name role state [status]".
func (n *node) seen() []string {
	s, err := n.Replica()
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for o := range s.Nodes.All() {
		line := fmt.Sprint(o.Description.Hostname, " ", o.Spec.Role, " ", o.Status.State)
		if m := o.ManagerStatus; m != nil {
			line += " " + string(m.Reachability)
			if m.Leader {
				line += " leader"
			}
		}
		all = append(all, line)
	}
	slices.Sort(all)
	return all
}

func (n *node) sees(want ...string) func() bool {
	return func() bool { return slices.Equal(n.seen(), want) }
}

func (n *node) tokens() swarm.JoinTokens {
	n.t.Helper()
	p, err := n.Store(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return p.Snapshot().Cluster().JoinTokens
}

func (n *node) init() {
	n.t.Helper()
	if _, err := n.Init(n.t.Context(), swarm.InitRequest{ListenAddr: "0.0.0.0:2377"}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) join(token string, at *node) {
	n.t.Helper()
	err := n.Join(n.t.Context(), swarm.JoinRequest{JoinToken: token, RemoteAddrs: []string{at.addr}})
	if err != nil {
		n.t.Fatalf("join %s: %v", n.name, err)
	}
}

// edit changes the object of a node, by way of this manager.
func (n *node) edit(name string, change func(*object.Node)) {
	n.t.Helper()
	for {
		p, err := n.Store(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		tx := store.Begin(p.Snapshot())
		for o := range p.Snapshot().Nodes.All() {
			if o.Description.Hostname == name {
				o = o.Clone().(*object.Node)
				change(o)
				tx.Update(o)
			}
		}
		if _, err = p.Propose(n.t.Context(), tx); err == nil {
			return
		}
		if !errors.Is(err, store.ErrSequence) {
			n.t.Fatal(err)
		}
	}
}

// machine pretends to run tasks.
type machine struct {
	describe func() swarm.NodeDescription

	mu    sync.Mutex
	tasks map[string]bool
}

func (m *machine) Describe(context.Context) (swarm.NodeDescription, error) { return m.describe(), nil }

func (m *machine) Controller(a *object.Assignment) (agent.Controller, error) {
	return &pretended{m: m, id: a.Task.ID, stop: make(chan struct{})}, nil
}

func (m *machine) Retain(_ context.Context, ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.tasks {
		if !slices.Contains(ids, id) {
			delete(m.tasks, id)
		}
	}
	return nil
}

type pretended struct {
	m    *machine
	id   string
	once sync.Once
	stop chan struct{}
}

func (p *pretended) Prepare(context.Context) error { return nil }

func (p *pretended) Start(context.Context) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.m.tasks[p.id] = true
	return nil
}

func (p *pretended) Wait(ctx context.Context) error {
	select {
	case <-p.stop:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pretended) Shutdown(context.Context) error {
	p.once.Do(func() { close(p.stop) })
	return nil
}

func (p *pretended) Remove(context.Context) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	delete(p.m.tasks, p.id)
	return nil
}

func (p *pretended) Status(context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	return nil, nil, nil
}

func TestSwarm_OfThreeManagersAndAWorker(t *testing.T) {
	w := &world{T: t}
	m1, m2, m3, w1 := w.add("m1"), w.add("m2"), w.add("m3"), w.add("w1")
	m1.init()
	tokens := m1.tokens()
	m2.join(tokens.Manager, m1)
	m3.join(tokens.Manager, m2) // which does not lead
	w1.join(tokens.Worker, m3)
	formed := []string{"m1 manager ready reachable leader", "m2 manager ready reachable", "m3 manager ready reachable", "w1 worker ready"}
	for _, m := range []*node{m1, m2, m3} {
		w.until("formed", m.sees(formed...))
	}
	if _, err := w1.Store(t.Context()); err == nil || !strings.Contains(err.Error(), "Worker nodes can't be used") {
		t.Errorf("a worker's store: %v", err)
	}
	t.Run("a follower writes", func(t *testing.T) {
		m3.edit("w1", func(n *object.Node) { n.Spec.Labels = map[string]string{"zone": "a"} })
		p, err := m3.Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n := range p.Snapshot().Nodes.All() {
			if n.Description.Hostname == "w1" && n.Spec.Labels["zone"] != "a" {
				t.Error("it does not read what it wrote")
			}
		}
	})
	t.Run("all learn how to gossip", func(*testing.T) {
		for _, n := range w.nodes {
			w.until(n.name+" knows", func() bool {
				g := n.gossip.Load()
				return g != nil && g.Node == n.Info(t.Context()).NodeID && len(g.Nodes) == 4 && g.Version > 0 && len(g.Keys) > 0 &&
					slices.Equal(g.Keys[0], m1.gossip.Load().Keys[0])
			})
		}
		m1.Hint(w1.Info(t.Context()).NodeID, true) // which the node's beats deny
		w1.Hint("", true)                          // which counts for nothing
	})
	t.Run("a manager starts again", func(*testing.T) {
		m2.shut()
		m2.start()
		w.until("back", m2.sees(formed...))
	})
	t.Run("a worker is promoted and demoted", func(*testing.T) {
		m1.edit("w1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleManager })
		w.until("promoted", func() bool { return slices.Contains(w1.seen(), "w1 manager ready reachable") })
		m1.edit("w1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleWorker })
		w.until("demoted", func() bool {
			_, err := w1.Replica()
			return err != nil && slices.Contains(m1.seen(), "w1 worker ready")
		})
		w.until("a demoted node keeps nothing of the store", func() bool {
			left, _ := filepath.Glob(filepath.Join(w1.dir, "raft", "*"))
			return len(left) == 0
		})
	})
	t.Run("the leader goes", func(*testing.T) {
		m1.shut()
		w.until("another leads", func() bool {
			return slices.ContainsFunc(m2.seen(), func(l string) bool { return strings.HasSuffix(l, "leader") && !strings.HasPrefix(l, "m1") })
		})
		m2.edit("w1", func(n *object.Node) { n.Spec.Availability = swarm.NodeAvailabilityDrain })
		m1.start()
		w.until("it comes back", func() bool { return slices.Contains(m1.seen(), "m1 manager ready reachable") })
	})
	t.Run("a worker leaves", func(*testing.T) {
		if err := w1.Leave(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if s := w1.Info(t.Context()).LocalNodeState; s != swarm.LocalNodeStateInactive {
			t.Errorf("it is %s", s)
		}
		if g := w1.gossip.Load(); g.Node != "" || len(g.Keys) > 0 {
			t.Errorf("it goes on gossiping as %s", g.Node)
		}
		w.until("it is gone", func() bool { return slices.Contains(m1.seen(), "w1 worker down") })
	})
}

func TestSwarm_IsRecoveredByForce(t *testing.T) {
	w := &world{T: t}
	m1, m2, m3, w1 := w.add("m1"), w.add("m2"), w.add("m3"), w.add("w1")
	m1.init()
	tokens := m1.tokens()
	m2.join(tokens.Manager, m1)
	m3.join(tokens.Manager, m1)
	w1.join(tokens.Worker, m1)
	w.until("formed", m3.sees("m1 manager ready reachable leader", "m2 manager ready reachable", "m3 manager ready reachable", "w1 worker ready"))
	w.until("with three votes", func() bool { return m3.Voters() == 3 })
	m1.edit("w1", func(n *object.Node) { n.Spec.Labels = map[string]string{"kept": "yes"} })
	m1.shut()
	m2.shut()
	if _, err := m3.Init(t.Context(), swarm.InitRequest{ForceNewCluster: true}); err != nil {
		t.Fatal(err)
	}
	w.until("the worker comes back", func() bool { return slices.Contains(m3.seen(), "w1 worker ready") })
	s, err := m3.Replica()
	if err != nil {
		t.Fatal(err)
	}
	for n := range s.Nodes.All() {
		if n.Description.Hostname == "w1" && n.Spec.Labels["kept"] != "yes" {
			t.Error("the state of the swarm is lost")
		}
	}
	m1.start()
	m2.start()
	w.until("who comes back is told what to do", func() bool {
		return strings.Contains(m1.Info(t.Context()).Error, `run "docker swarm leave --force" on it and let it join again`)
	})
	m3.edit("w1", func(n *object.Node) { n.Spec.Availability = swarm.NodeAvailabilityPause })
	if err := m1.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	m1.join(m3.tokens().Manager, m3)
	w.until("it is a manager again", func() bool { return slices.Contains(m1.seen(), "m1 manager ready reachable") })
}

func TestSwarm_RefusesWhoHasNoPlaceInIt(t *testing.T) {
	w := &world{T: t}
	m1, other, w1 := w.add("m1"), w.add("other"), w.add("w1")
	m1.init()
	other.init()
	token := m1.tokens().Worker
	tests := []struct{ name, token, want string }{
		{"no token at all", "hello", "invalid join token"},
		{"the root of another swarm", other.tokens().Worker, "remote CA does not match fingerprint"},
		{"another secret", token[:len(token)-25] + other.tokens().Worker[len(token)-25:], "A valid join token is necessary to join this cluster"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := w1.Join(t.Context(), swarm.JoinRequest{JoinToken: tt.token, RemoteAddrs: []string{m1.addr}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
			if s := w1.Info(t.Context()).LocalNodeState; s != swarm.LocalNodeStateInactive {
				t.Errorf("it is %s", s)
			}
		})
	}
	w1.join(token, m1)
	w.until("joined", m1.sees("m1 manager ready reachable leader", "w1 worker ready"))
	if err := w1.Join(t.Context(), swarm.JoinRequest{JoinToken: token, RemoteAddrs: []string{m1.addr}}); err == nil || !strings.Contains(err.Error(), "This node is already part of a swarm") {
		t.Errorf("joining twice: %v", err)
	}
	t.Run("a node that was removed", func(t *testing.T) {
		p, err := m1.Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tx := store.Begin(p.Snapshot())
		for n := range p.Snapshot().Nodes.All() {
			if n.Description.Hostname == "w1" {
				tx.Delete(n)
			}
		}
		if _, err := p.Propose(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		w.until("it knows", func() bool { return w1.Info(t.Context()).LocalNodeState == swarm.LocalNodeStateError })
		if err := w1.Leave(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		w1.join(token, m1)
	})
}
