package simtest_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

var (
	seeds = flag.Uint64("seeds", 200, "how many simulations to run")
	first = flag.Uint64("seed", 1, "the first seed")
)

// TestSimulation lets anything happen to swarms of three or five managers and
// twenty workers. Clients see one order of all changes; no node is ever sent a
// secret that none of its tasks uses; no address is ever two tasks'; no task is
// stopped while a node leads connections to it, unless that is down or was waited
// for; and when all is well again, each service runs as it is to, on nodes that are there.
func TestSimulation(t *testing.T) {
	var answered atomic.Int64 // one swarm may be without a leader most of the time, not all
	t.Cleanup(func() {
		if n := answered.Load(); n < 50*int64(*seeds) {
			t.Errorf("only %d requests were answered: nothing is tested", n)
		}
	})
	for seed := *first; seed < *first+*seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := simulate(t, seed, bugs{})
			s.trace.Report(t, seed, s.history)
			answered.Add(int64(s.history.Len()))
		})
	}
}

// bugs are those that are seeded.
type bugs struct {
	leaky bool // managers send all nodes all secrets
	hasty bool // nodes say that they have programmed what they are yet to
}

func TestSimulation_Catches(t *testing.T) {
	for _, test := range []struct {
		name string
		bugs bugs
		want string
	}{
		{"a leak", bugs{leaky: true}, "which none of its tasks uses"},
		{"haste", bugs{hasty: true}, "leads connections to it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(40) {
				for _, bad := range simulate(t, seed+1, test.bugs).trace.Violations() {
					if strings.Contains(bad, test.want) {
						t.Logf("seed %d: %s", seed+1, bad)
						return
					}
				}
			}
			t.Error("not noticed in 40 simulations")
		})
	}
}

func simulate(t *testing.T, seed uint64, seeded bugs) *swarmed {
	t.Helper()
	s := &swarmed{seed: seed, bugs: seeded, dir: directory(t), history: storetest.NewHistory()}
	storetest.Bubble(t, s.run)
	if err := s.history.Check(); err != nil {
		s.trace.Violate("%v", err)
	}
	return s
}

// directory is where agents keep their files: in memory, if that can be had.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "skep-simtest-") //nolint:usetesting // t.TempDir is on a disk: agents sync much
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// length is how long the faults last.
const length = 40 * time.Second

func (s *swarmed) run(t *testing.T) {
	t.Helper()
	s.begin(t)
	defer s.end()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 2 {
		own := rand.New(rand.NewPCG(s.seed, uint64(10+i)))
		client := &storetest.Client{Name: fmt.Sprint("c", i), Rand: own, History: s.history, Pick: func() storetest.Server {
			if m := s.cluster.Member(own.IntN(s.cluster.Size())); m != nil {
				return m
			}
			return nil
		}}
		clients.Go(func() { client.Run(ctx) })
	}
	s.create()
	s.create()
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(time.Duration(200+s.rng.IntN(2500)) * time.Millisecond)
		if s.rng.IntN(3) == 0 {
			s.cluster.Disturb(s.rng)
		}
		s.act()
		for i := range s.cluster.Size() {
			if m := s.cluster.Member(i); m != nil {
				s.onlyOnce(m.Snapshot())
			}
		}
	}
	stop()
	clients.Wait()
	s.rest()
}

// rest makes all well, and waits until it is.
func (s *swarmed) rest() {
	s.trace.Log("rest")
	s.cluster.Rest(15 * time.Second)
	m := s.cluster.Member(max(0, s.cluster.Leader()))
	for _, w := range s.workers {
		if _, ok := m.Snapshot().Nodes.Get(w.node()); !ok {
			w.join()
		}
		w.boot()
		s.availability(w, swarm.NodeAvailabilityActive)
	}
	text := ""
	for range 60 {
		time.Sleep(5 * time.Second)
		if text = s.unsettled(); text == "" {
			return
		}
	}
	s.trace.Violate("not settled: %s", text)
}

// unsettled says what is not as it should be, and is "" if nothing is.
func (s *swarmed) unsettled() string {
	i := s.cluster.Leader()
	if i < 0 {
		return "nobody leads"
	}
	snap := s.cluster.Member(i).Snapshot()
	for j := range s.cluster.Size() {
		if m := s.cluster.Member(j); m == nil {
			return s.cluster.Name(j) + " is down"
		}
	}
	boxes := map[string]string{} // the node, by task
	active := 0
	for _, w := range s.workers {
		for _, id := range w.running() {
			boxes[id] = w.node()
		}
		n, ok := snap.Nodes.Get(w.node())
		if !ok || n.Status.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive {
			return w.node() + " is not there, ready and active"
		}
		active++
	}
	for o := range snap.Services.All() {
		want := active
		if o.Spec.Mode.Replicated != nil {
			want = int(*o.Spec.Mode.Replicated.Replicas)
		}
		for t := range snap.Tasks.By(store.ByService, o.ID) {
			if t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning && boxes[t.ID] == t.NodeID {
				want--
			}
		}
		if want != 0 {
			text := fmt.Sprintf("%s lacks %d tasks", o.Spec.Name, want)
			for t := range snap.Tasks.By(store.ByService, o.ID) {
				text += fmt.Sprintf("\n  slot %d of %s on %s: to be %s, %s, box %q %s", t.Slot, t.ID, t.NodeID, t.DesiredState, t.Status.State, boxes[t.ID], t.Status.Err)
			}
			return text + fmt.Sprintf("\n  update: %+v; %d secrets", o.UpdateStatus, snap.Secrets.Len())
		}
	}
	if text := s.addressed(snap); text != "" {
		return text
	}
	s.onlyOnce(snap)
	for t := range snap.Tasks.All() {
		if _, ok := snap.Nodes.Get(t.NodeID); !ok && !object.Ended(t.DesiredState) {
			return fmt.Sprintf("task %s is on node %q, which was removed", t.ID, t.NodeID)
		}
	}
	for id, node := range boxes {
		if t, ok := snap.Tasks.Get(id); !ok || t.NodeID != node || object.Ended(t.DesiredState) {
			return fmt.Sprintf("task %s runs on %s, and is not to", id, node)
		}
	}
	return ""
}
