package allocator_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/allocator"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// crowd is a swarm of 50 services on one /15 whose tasks all run.
func crowd(b *testing.B, tasks int) *storetest.Local {
	b.Helper()
	s := swarmStore(b)
	const services = 50
	s.Write(b, func(tx *store.Tx) {
		n := &object.Network{}
		n.ID, n.Spec.Name = "net", "net"
		n.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: netip.MustParsePrefix("10.64.0.0/15")}}}
		tx.Create(n)
		for i := range services {
			svc := &object.Service{}
			svc.ID = fmt.Sprintf("s%02d", i)
			svc.Spec.Name = svc.ID
			svc.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "net"}}
			tx.Create(svc)
		}
	})
	plan(b, s)
	for i := 0; i < tasks; i += 1000 {
		s.Write(b, func(tx *store.Tx) {
			for j := i; j < min(i+1000, tasks); j++ {
				t := &object.Task{ID: fmt.Sprintf("t%06d", j), ServiceID: fmt.Sprintf("s%02d", j%services), DesiredState: swarm.TaskStateRunning}
				t.Status.State = swarm.TaskStateRunning
				t.Networks = []object.TaskNetwork{{ID: "net", Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, byte(j >> 8), byte(j)}), 15)}}}
				tx.Create(t)
			}
		})
	}
	return s
}

// BenchmarkPlan_Begin is the first round of a new leader.
func BenchmarkPlan_Begin(b *testing.B) {
	for _, tasks := range []int{5000, 50000} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			s := crowd(b, tasks)
			b.ReportAllocs()
			for b.Loop() {
				if c, _ := allocator.New().Plan(nil, s.Since(0), time.Now()); !c.Empty() {
					b.Fatal("something was left to do")
				}
			}
		})
	}
}

// BenchmarkPlan_Task is a round for one new task beside those that run.
func BenchmarkPlan_Task(b *testing.B) {
	for _, tasks := range []int{5000, 50000} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			s := crowd(b, tasks)
			a := allocator.New()
			prev := s.Snapshot()
			a.Plan(nil, s.Since(0), time.Now())
			s.Write(b, func(tx *store.Tx) {
				t := &object.Task{ID: "new", ServiceID: "s00", DesiredState: swarm.TaskStateRunning}
				t.Status.State = swarm.TaskStateNew
				tx.Create(t)
			})
			ch := s.Since(prev.Index)
			b.ReportAllocs()
			for b.Loop() {
				if c, _ := a.Plan(prev, ch, time.Now()); len(c.Update) != 1 {
					b.Fatalf("%d objects change", len(c.Update))
				}
			}
		})
	}
}

// BenchmarkPlan_Crowd is the round that gives all tasks their addresses at once.
func BenchmarkPlan_Crowd(b *testing.B) {
	for _, tasks := range []int{5000, 50000} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			s := crowd(b, 0)
			for i := 0; i < tasks; i += 5000 {
				s.Write(b, func(tx *store.Tx) {
					for j := i; j < min(i+5000, tasks); j++ {
						t := &object.Task{ID: fmt.Sprintf("t%06d", j), ServiceID: fmt.Sprintf("s%02d", j%50), DesiredState: swarm.TaskStateRunning}
						t.Status.State = swarm.TaskStateNew
						tx.Create(t)
					}
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				if c, _ := allocator.New().Plan(nil, s.Since(0), time.Now()); len(c.Update) != tasks {
					b.Fatalf("%d objects change", len(c.Update))
				}
			}
			b.ReportMetric(float64(tasks*b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
