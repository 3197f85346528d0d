package simtest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/manager"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
	"skep/store/storetest"
)

// swarmed is a whole swarm: managers, their loops and dispatchers, and workers
// with real agents.
type swarmed struct {
	t        *testing.T
	dir      string
	bugs     bugs
	intents  intents
	seed     uint64
	rng      *rand.Rand // of the driver
	trace    storetest.Trace
	history  *storetest.History
	cluster  *storetest.Cluster
	workers  []*worker
	made     int // how many services there ever were
	networks int // how many were made
}

// worker is a machine that is in the swarm, most of the time.
type worker struct {
	machine
	s      *swarmed
	stint  int // how often it has joined
	plane  plane
	cancel context.CancelFunc
	done   chan struct{}
}

const (
	workers = 20
	secrets = 4
	port    = ":2377"
)

var logger = slog.New(slog.DiscardHandler)

// begin forms the swarm.
func (s *swarmed) begin(t *testing.T) {
	t.Helper()
	s.t = t
	s.rng = rand.New(rand.NewPCG(s.seed, 2))
	cfg := storetest.Config{Size: 3 + 2*s.rng.IntN(2), Seed: s.seed, Trace: &s.trace, Lead: s.lead}
	if s.rng.IntN(2) == 0 {
		cfg.Timing = replica.Timing{SnapshotThreshold: 64, SnapshotInterval: 3 * time.Second, TrailingLogs: 16}
	}
	s.cluster = storetest.NewCluster(t, cfg)
	s.write(func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: "swarm"})
		tx.Create(storetest.Ingress())
		for i := range secrets {
			o := new(object.Secret)
			o.ID, o.Spec.Name, o.Spec.Data = fmt.Sprint("secret", i), fmt.Sprint("secret", i), []byte("hidden")
			tx.Create(o)
		}
	})
	for i := range workers {
		w := &worker{s: s, machine: machine{host: fmt.Sprint("w", i), boxes: map[string]*box{}}, plane: plane{hasty: s.bugs.hasty}}
		w.stopping = func(task string) { s.stopped(w, task) }
		s.workers = append(s.workers, w)
		w.join()
	}
}

// end stops the workers; the cluster ends with the test.
func (s *swarmed) end() {
	for _, w := range s.workers {
		w.stop()
	}
}

// lead is what a manager does while it leads: the loops, and the sessions.
func (s *swarmed) lead(ctx context.Context, c *storetest.Cluster, name string, m *replica.Member) error {
	mgr := manager.New(manager.Config{Store: m, NodeID: name, Logger: logger})
	end := c.Net.Listen(name+port, 0)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end.Close()
	known := &recent{member: m, intents: &s.intents}
	wg.Go(func() { known.follow(ctx.Done()) })
	wg.Go(func() {
		for {
			conn, err := end.Accept()
			if err != nil {
				return
			}
			_, node, _ := net.SplitHostPort(conn.RemoteAddr().String())
			conn = &tap{Conn: conn, s: s, node: node, recent: known}
			if s.bugs.leaky {
				conn = &leak{conn, m}
			}
			wg.Go(func() { _ = mgr.Serve(ctx, conn, pki.Node{ID: node, Role: pki.Worker, Generation: 1}) }) // ends with ctx
		}
	})
	s.trace.Log("loops of %s begin", name)
	err := mgr.Run(ctx)
	s.trace.Log("loops of %s end: %v", name, err)
	return err
}

// write is a change that an operator makes. It may not come about.
func (s *swarmed) write(do func(tx *store.Tx)) {
	for range 20 {
		m := s.cluster.Member(s.rng.IntN(s.cluster.Size()))
		if m == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		snap, err := m.Read(ctx)
		if err == nil {
			tx := store.Begin(snap)
			do(tx)
			_, err = m.Propose(ctx, tx)
		}
		cancel()
		if err == nil || !errors.Is(err, store.ErrSequence) && s.made > 0 {
			return
		}
	}
}

// node is the worker's ID in the swarm.
func (w *worker) node() string { return fmt.Sprintf("%s-%d", w.host, w.stint) }

// join makes the worker a new node, whose tasks it has none of.
func (w *worker) join() {
	w.stop()
	w.halt()
	w.plane.clear()
	w.mu.Lock()
	clear(w.boxes)
	w.mu.Unlock()
	w.stint++
	n := &object.Node{CertRole: swarm.NodeRoleWorker}
	n.ID, n.Spec.Role, n.Spec.Availability = w.node(), swarm.NodeRoleWorker, swarm.NodeAvailabilityActive
	n.Status.State = swarm.NodeStateUnknown
	w.s.write(func(tx *store.Tx) {
		if _, there := tx.Base().Nodes.Get(n.ID); !there {
			tx.Create(n)
		}
	})
	w.boot()
}

func (w *worker) boot() {
	if w.cancel != nil {
		return
	}
	end := w.s.cluster.Net.Listen(w.host+":"+w.node(), 0)
	var a *agent.Agent
	a = agent.New(agent.Config{
		NodeID: w.node(), File: filepath.Join(w.s.dir, w.node()), Sealer: open{}, Executor: &w.machine, Logger: logger,
		Dial:     func(context.Context) (net.Conn, error) { return w.dial(end) },
		Networks: func(v *wire.NetworkView) { w.plane.set(a, v) },
	})
	ctx, cancel := context.WithCancel(w.s.t.Context())
	w.cancel, w.done = cancel, make(chan struct{})
	go func(done chan struct{}) { // until stop
		defer close(done)
		defer end.Close()
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			w.s.trace.Violate("the agent of %s ended: %v", w.node(), err)
		}
	}(w.done)
}

// dial asks a manager who leads, and goes there.
func (w *worker) dial(end *storetest.Endpoint) (net.Conn, error) {
	c := w.s.cluster
	i := rand.IntN(c.Size())
	m := c.Member(i)
	if m == nil || !c.Net.Reaches(w.host, c.Name(i)) || m.Leader() == "" {
		return nil, fmt.Errorf("%s does not know who leads", c.Name(i))
	}
	return end.Dial(raft.ServerAddress(m.Leader()+port), 5*time.Second)
}

// stop ends the agent; the boxes run on.
func (w *worker) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	<-w.done
	w.cancel = nil
}
