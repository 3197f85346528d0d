package appliance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/appliance/nodetest"
)

// median reports the middle of several times.
func median(b *testing.B, times []time.Duration, unit string) {
	b.Helper()
	slices.Sort(times)
	b.ReportMetric(times[len(times)/2].Seconds(), "s-"+unit)
	b.ReportMetric(times[len(times)-1].Seconds(), "s-"+unit+"-max")
}

// every waits for f with a pause that is short beside what is measured.
func every(b *testing.B, f func() bool) {
	b.Helper()
	for end := time.Now().Add(3 * time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("not in time")
		}
	}
}

// BenchmarkLeaderLost is the time from the leader's loss of power to the next
// write that another manager acknowledges: ten losses.
func BenchmarkLeaderLost(b *testing.B) {
	s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
	s.Form(b, "m1", "m2", "m3")
	var times []time.Duration
	tries := 0
	for b.Loop() {
		for range 10 {
			lost := leader(b, s, s.Nodes()[0])
			ask := another(s, lost)
			w := &writer{url: "http://skep", client: ask.API()}
			w.client.Timeout = time.Minute
			began := time.Now()
			lost.PowerOff(b)
			every(b, func() bool { tries++; return w.create(fmt.Sprintf("bench-%d", tries)) == nil })
			times = append(times, time.Since(began))
			b.StopTimer()
			lost.Start(b)
			every(b, func() bool { return nodesSeen(ask)[lost.Name].ManagerStatus.Reachability == "reachable" })
			b.StartTimer()
		}
	}
	median(b, times, "lost-to-write")
}

// BenchmarkWorkerLost is the time from a worker's loss of power to it being
// declared down, and from there to its task running elsewhere.
func BenchmarkWorkerLost(b *testing.B) {
	s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
	s.Form(b, "m1", "m2", "m3", "w1", "w2", "w3")
	m := s.Nodes()[0]
	docker := m.CLI(b, s.Docker)
	docker.Run("service", "create", "-q", "--name", "web", "--constraint", "node.role==worker", "skep/hello")
	var downs, replaced []time.Duration
	for b.Loop() {
		id, name := place(b, m, "")
		lost := s.Node(b, name)
		began := time.Now()
		lost.PowerOff(b)
		every(b, func() bool { return nodesSeen(m)[name].Status.State == "down" })
		down := time.Now()
		downs = append(downs, down.Sub(began))
		every(b, func() bool { next, _ := place(b, m, id); return next != "" })
		replaced = append(replaced, time.Since(down))
		b.StopTimer()
		lost.Start(b)
		every(b, func() bool { return nodesSeen(m)[name].Status.State == "ready" })
		b.StartTimer()
	}
	median(b, downs, "lost-to-down")
	median(b, replaced, "down-to-running")
}

// place is the task that runs, other than one, and the name of its node.
func place(b *testing.B, m *nodetest.Node, not string) (task, node string) {
	b.Helper()
	var tasks []struct {
		ID, NodeID, DesiredState string
		Status                   struct{ State string }
	}
	if err := ask(m, "/tasks", &tasks); err != nil {
		return "", ""
	}
	for _, t := range tasks {
		if t.ID == not || t.Status.State != "running" || t.DesiredState != "running" {
			continue
		}
		for name, n := range nodesSeen(m) {
			if n.ID == t.NodeID {
				return t.ID, name
			}
		}
	}
	return "", ""
}

// BenchmarkJoin is the time from starting a node that has only its node file to
// being ready in the swarm.
func BenchmarkJoin(b *testing.B) {
	for _, role := range []string{"worker", "manager"} {
		b.Run(role, func(b *testing.B) {
			s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
			s.Form(b, "m1", "m2", "m3")
			m := s.Nodes()[0]
			var times []time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				name := fmt.Sprintf("%c%d", role[0], i+10)
				n := s.Add(b, name, nodetest.Joiner)
				n.WriteToken(b, m)
				b.StartTimer()
				began := time.Now()
				n.Launch(b)
				every(b, func() bool { return nodesSeen(m)[name].Status.State == "ready" })
				times = append(times, time.Since(began))
				if i == 9 {
					break
				}
			}
			median(b, times, "join-to-ready")
		})
	}
}

// BenchmarkCommits is how many writes per second three managers acknowledge,
// over the API of the leader and of a follower, beside what the disk under
// their logs syncs.
func BenchmarkCommits(b *testing.B) {
	s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
	s.Form(b, "m1", "m2", "m3")
	lead := leader(b, s, s.Nodes()[0])
	for _, at := range []struct {
		name string
		node *nodetest.Node
	}{{"leader", lead}, {"follower", another(s, lead)}} {
		for _, clients := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/clients=%d", at.name, clients), func(b *testing.B) {
				w := &writer{url: "http://skep", client: at.node.API()}
				work := make(chan int)
				var running sync.WaitGroup
				for range clients {
					running.Go(func() {
						for i := range work {
							if err := w.create(fmt.Sprintf("%s-%d-%d-%d", at.name, clients, b.N, i)); err != nil {
								b.Error(err)
							}
						}
					})
				}
				began := time.Now()
				for i := 0; b.Loop(); i++ {
					work <- time.Now().Nanosecond() + i*1e9
				}
				close(work)
				running.Wait()
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "commits/s")
			})
		}
	}
	b.Run("fdatasync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "log"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		page := make([]byte, 4096)
		for b.Loop() {
			if _, err := f.Write(page); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "syncs/s")
	})
}
