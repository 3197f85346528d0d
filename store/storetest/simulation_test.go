package storetest_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"skep/store/replica"
	"skep/store/storetest"
)

var (
	seeds = flag.Uint64("seeds", 200, "how many simulations to run")
	first = flag.Uint64("seed", 1, "the first seed")
)

// TestSimulation lets clients work on objects while members are cut off, crash
// and have bad disks. What the clients saw has an order, whatever they were
// told is true, no two members led at once, and all have the same state.
func TestSimulation(t *testing.T) {
	for seed := *first; seed < *first+*seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed, bug{}).report(t)
		})
	}
}

// simulation is one run.
type simulation struct {
	seed    uint64
	bug     bug
	trace   storetest.Trace
	history *storetest.History
}

// bug is what is wrong with a cluster, on purpose.
type bug struct {
	// prepare changes the cluster before the clients begin.
	prepare func(c *storetest.Cluster)
	// server takes the place of a member.
	server func(c *storetest.Cluster, m *replica.Member) storetest.Server
}

// length is how long the faults last in each simulation.
const length = time.Minute

func simulate(t *testing.T, seed uint64, b bug) *simulation {
	t.Helper()
	s := &simulation{seed: seed, bug: b, history: storetest.NewHistory()}
	storetest.Bubble(t, s.run)
	if err := s.history.Check(); err != nil {
		s.trace.Violate("%v", err)
	}
	return s
}

func (s *simulation) run(t *testing.T) {
	t.Helper()
	b := s.bug
	r := rand.New(rand.NewPCG(s.seed, 1))
	cfg := storetest.Config{Size: 3 + 2*r.IntN(2), Seed: s.seed, Trace: &s.trace}
	if r.IntN(2) == 0 {
		cfg.Timing = replica.Timing{SnapshotThreshold: 32, SnapshotInterval: 3 * time.Second, TrailingLogs: 16}
	}
	c := storetest.NewCluster(t, cfg)
	if b.prepare != nil {
		b.prepare(c)
	}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 5 {
		own := rand.New(rand.NewPCG(s.seed, uint64(10+i)))
		client := &storetest.Client{Name: fmt.Sprint("c", i), Rand: own, History: s.history, Pick: func() storetest.Server {
			m := c.Member(own.IntN(c.Size()))
			switch {
			case m == nil:
				return nil
			case b.server != nil:
				return b.server(c, m)
			}
			return m
		}}
		clients.Go(func() { client.Run(ctx) })
	}
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(time.Duration(500+r.IntN(7000)) * time.Millisecond)
		c.Disturb(r)
	}
	c.Rest(40 * time.Second)
	before := s.history.Len()
	time.Sleep(10 * time.Second)
	if s.history.Len() < before+20 {
		s.trace.Violate("clients are not served after all is well: %d answers in 10 s", s.history.Len()-before)
	}
	stop()
	clients.Wait()
	time.Sleep(5 * time.Second)
	s.settled(c)
}

// settled looks whether all members have the same state in the end.
func (s *simulation) settled(c *storetest.Cluster) {
	for i := range c.Size() {
		a, b := c.Member(0), c.Member(i)
		if a == nil || b == nil {
			s.trace.Violate("a member is down")
			return
		}
		if storetest.Digest(a.Snapshot()) != storetest.Digest(b.Snapshot()) {
			s.trace.Violate("%s is at %d, %s at %d in the end", c.Name(0), a.Snapshot().Index, c.Name(i), b.Snapshot().Index)
		}
	}
}

func (s *simulation) report(t *testing.T) {
	t.Helper()
	s.trace.Report(t, s.seed, s.history)
	if s.history.Len() < 50 {
		t.Errorf("only %d requests were answered: nothing is tested", s.history.Len())
	}
}
