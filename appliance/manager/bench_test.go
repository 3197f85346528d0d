package manager_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// BenchmarkCreate is the time from a service's creation until all of its tasks
// are known to run, without the containers: loops, dispatcher, wire, agent and
// the agent's file.
func BenchmarkCreate(b *testing.B) {
	for _, n := range []uint64{1, 10, 100} {
		b.Run(fmt.Sprintf("replicas=%d", n), func(b *testing.B) {
			w := newWorld(b, b.TempDir())
			defer w.end()
			w.log = slog.New(slog.DiscardHandler)
			m := &machine{name: "n1", world: w, containers: map[string]*box{}}
			node := &object.Node{}
			node.ID, node.Spec.Availability = m.name, swarm.NodeAvailabilityActive
			w.store.Write(b, func(tx *store.Tx) { tx.Create(node) })
			w.machines[m.name] = m
			w.boot(m)
			spec := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}}
			spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img"}
			for i := 0; b.Loop(); i++ {
				spec.Name = fmt.Sprintf("s%d", i)
				var svc *object.Service
				w.store.Write(b, func(tx *store.Tx) { svc = store.CreateService(tx, spec, nil) })
				w.await(func(s *store.Snapshot) bool {
					running := uint64(0)
					for t := range s.Tasks.By(store.ByService, svc.ID) {
						if t.Status.State == swarm.TaskStateRunning {
							running++
						}
					}
					return running == n
				})
				b.StopTimer()
				svc, _ = w.store.Snapshot().Services.Get(svc.ID)
				for {
					tx := store.Begin(w.store.Snapshot())
					svc, _ = w.store.Snapshot().Services.Get(svc.ID)
					tx.Delete(svc)
					if _, err := w.store.Propose(b.Context(), tx); err == nil {
						break
					}
				}
				w.await(func(s *store.Snapshot) bool { return s.Tasks.Len() == 0 })
				b.StartTimer()
			}
		})
	}
}

// await waits until the store is as it is to be.
func (w *world) await(ok func(*store.Snapshot) bool) {
	var after uint64
	for {
		ch := w.store.Since(after)
		if ok(ch.Snapshot) {
			return
		}
		after = ch.Snapshot.Index
		<-ch.News
	}
}
