package scheduler_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/scheduler"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func node(id string, do ...func(*object.Node)) *object.Node {
	n := &object.Node{}
	n.ID, n.Description.Hostname = id, id
	n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
	n.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}
	n.Description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	for _, f := range do {
		f(n)
	}
	return n
}

func label(k, v string) func(*object.Node) {
	return func(n *object.Node) { n.Spec.Labels = map[string]string{k: v} }
}

// swarmOf is a store with nodes and one service.
func swarmOf(tb testing.TB, spec swarm.ServiceSpec, nodes ...*object.Node) (*storetest.Local, *object.Service) {
	tb.Helper()
	s := storetest.New(tb)
	var svc *object.Service
	spec.Name = "web"
	s.Write(tb, func(tx *store.Tx) {
		for _, n := range nodes {
			tx.Create(n)
		}
		svc = store.CreateService(tx, spec, nil)
	})
	svc, _ = s.Snapshot().Services.Get(svc.ID)
	return s, svc
}

func pending(svc *object.Service, slot int) *object.Task {
	t := &object.Task{ID: fmt.Sprintf("%s-%d", svc.Spec.Name, slot), ServiceID: svc.ID, SpecVersion: svc.SpecVersion, Slot: slot}
	t.DesiredState, t.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
	return t
}

func on(t *object.Task, node string, state swarm.TaskState) *object.Task {
	t.NodeID, t.Status.State = node, state
	return t
}

func create(tb testing.TB, s *storetest.Local, tasks ...*object.Task) {
	tb.Helper()
	s.Write(tb, func(tx *store.Tx) {
		for _, t := range tasks {
			tx.Create(t)
		}
	})
}

// once is one decision from nothing, as "task node" or "task: error".
func once(s *storetest.Local, now time.Time) []string {
	c, _ := new(scheduler.Scheduler).Plan(nil, s.Since(0), now)
	return describe(c)
}

func describe(c loop.Changes) (out []string) {
	for _, o := range c.Update {
		t := o.(*object.Task)
		if t.Status.State == swarm.TaskStateAssigned {
			out = append(out, t.ID+" "+t.NodeID)
			continue
		}
		out = append(out, t.ID+": "+t.Status.Err)
	}
	return out
}

func TestPlan_Filters(t *testing.T) {
	place := func(p swarm.Placement) swarm.ServiceSpec {
		return swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{Placement: &p}}
	}
	reserve := func(r swarm.Resources) swarm.ServiceSpec {
		return swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{Resources: &swarm.ResourceRequirements{Reservations: &r}}}
	}
	mounts := func(m mount.Mount) swarm.ServiceSpec {
		return swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Mounts: []mount.Mount{m}}}}
	}
	gpu := func(n int64) []swarm.GenericResource {
		return []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: n}}}
	}
	tests := []struct {
		name  string
		spec  swarm.ServiceSpec
		nodes []*object.Node
		want  string
	}{
		{name: "no nodes", want: "web-1: no suitable node"},
		{
			name: "not ready", nodes: []*object.Node{
				node("n1", func(n *object.Node) { n.Status.State = swarm.NodeStateDown }),
				node("n2", func(n *object.Node) { n.Spec.Availability = swarm.NodeAvailabilityPause }),
			},
			want: "web-1: no suitable node (2 nodes not available for new tasks)",
		},
		{name: "fits", spec: reserve(swarm.Resources{NanoCPUs: 4e9}), nodes: []*object.Node{node("n1")}, want: "web-1 n1"},
		{
			name: "cpu", spec: reserve(swarm.Resources{NanoCPUs: 5e9}), nodes: []*object.Node{node("n1")},
			want: "web-1: no suitable node (insufficient resources on 1 node)",
		},
		{
			name: "memory", spec: reserve(swarm.Resources{MemoryBytes: 9 << 30}), nodes: []*object.Node{node("n1"), node("n2")},
			want: "web-1: no suitable node (insufficient resources on 2 nodes)",
		},
		{
			name: "generic", spec: reserve(swarm.Resources{GenericResources: gpu(2)}), nodes: []*object.Node{
				node("n1"),
				node("n2", func(n *object.Node) { n.Description.Resources.GenericResources = gpu(1) }),
				node("n3", func(n *object.Node) {
					n.Description.Resources.GenericResources = []swarm.GenericResource{
						{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "a"}},
						{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "b"}},
					}
				}),
			},
			want: "web-1 n3",
		},
		{
			name:  "volume driver",
			spec:  mounts(mount.Mount{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "nfs"}}}),
			nodes: []*object.Node{node("n1")},
			want:  "web-1: no suitable node (missing plugin on 1 node)",
		},
		{
			name: "volume driver there",
			spec: mounts(mount.Mount{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "nfs"}}}),
			nodes: []*object.Node{node("n1"), node("n2", func(n *object.Node) {
				n.Description.Engine.Plugins = []swarm.PluginDescription{{Type: "Volume", Name: "nfs:latest"}}
			})},
			want: "web-1 n2",
		},
		{
			name: "log driver", spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{LogDriver: &swarm.Driver{Name: "gelf"}}},
			nodes: []*object.Node{node("n1", func(n *object.Node) {
				n.Description.Engine.Plugins = []swarm.PluginDescription{{Type: "Log", Name: "json-file"}}
			})},
			want: "web-1: no suitable node (missing plugin on 1 node)",
		},
		{
			name: "log drivers unknown", spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{LogDriver: &swarm.Driver{Name: "gelf"}}},
			nodes: []*object.Node{node("n1")}, want: "web-1 n1",
		},
		{
			name: "constraint", spec: place(swarm.Placement{Constraints: []string{"node.labels.disk==ssd", "node.hostname!=n2"}}),
			nodes: []*object.Node{node("n1"), node("n2", label("disk", "ssd"))},
			want:  "web-1: no suitable node (scheduling constraints not satisfied on 2 nodes)",
		},
		{
			name: "constraint that cannot be read", spec: place(swarm.Placement{Constraints: []string{"disk"}}), nodes: []*object.Node{node("n1")},
			want: "web-1: no suitable node (scheduling constraints not satisfied on 1 node)",
		},
		{
			name: "platform", spec: place(swarm.Placement{Platforms: []swarm.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "windows"}}}),
			nodes: []*object.Node{node("n1")},
			want:  "web-1: no suitable node (unsupported platform on 1 node)",
		},
		{
			name: "platform by its other name", spec: place(swarm.Placement{Platforms: []swarm.Platform{{OS: "linux", Architecture: "amd64"}}}),
			nodes: []*object.Node{node("n1")}, want: "web-1 n1",
		},
		{
			name: "cluster volume", spec: mounts(mount.Mount{Type: mount.TypeCluster}), nodes: []*object.Node{node("n1")},
			want: "web-1: no suitable node (cannot fulfill requested CSI volume mounts on 1 node)",
		},
		{
			name: "several reasons, the most frequent first", spec: place(swarm.Placement{Constraints: []string{"node.id==x"}}),
			nodes: []*object.Node{
				node("n1", func(n *object.Node) { n.Status.State = swarm.NodeStateDown }), node("n2"), node("n3"),
			},
			want: "web-1: no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, svc := swarmOf(t, tt.spec, tt.nodes...)
			create(t, s, pending(svc, 1))
			if diff := cmp.Diff([]string{tt.want}, once(s, time.Now())); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlan_Ranking(t *testing.T) {
	now := time.Unix(1e9, 0)
	failure := func(svc *object.Service, n int, at time.Time) *object.Task {
		f := on(pending(svc, n), "n1", swarm.TaskStateFailed)
		f.DesiredState, f.AppliedAt = swarm.TaskStateShutdown, at.UnixNano()
		return f
	}
	var many []int
	for n := 10; n < 15; n++ {
		many = append(many, n)
	}
	zones := []*object.Node{node("n1", label("z", "a")), node("n2", label("z", "a")), node("n3", label("z", "a")), node("n4", label("z", "b"))}
	spread := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{Placement: &swarm.Placement{Preferences: []swarm.PlacementPreference{
		{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.z"}},
	}}}}
	tests := []struct {
		name  string
		spec  swarm.ServiceSpec
		nodes []*object.Node
		tasks func(svc *object.Service) []*object.Task
		want  []string
	}{
		{
			name: "fewest of the service, then fewest of all", nodes: []*object.Node{node("n1"), node("n2"), node("n3")},
			tasks: func(svc *object.Service) []*object.Task {
				other := on(pending(svc, 9), "n2", swarm.TaskStateRunning)
				other.ServiceID = "other"
				return []*object.Task{on(pending(svc, 8), "n1", swarm.TaskStateRunning), other, pending(svc, 1), pending(svc, 2), pending(svc, 3)}
			},
			want: []string{"web-1 n3", "web-2 n2", "web-3 n1"},
		},
		{
			name: "what is to stop does not count", nodes: []*object.Node{node("n1"), node("n2")},
			tasks: func(svc *object.Service) []*object.Task {
				stopping := on(pending(svc, 8), "n1", swarm.TaskStateRunning)
				stopping.DesiredState = swarm.TaskStateShutdown
				return []*object.Task{stopping, pending(svc, 1), pending(svc, 2)}
			},
			want: []string{"web-1 n1", "web-2 n2"},
		},
		{
			name: "five failures of late", nodes: []*object.Node{node("n1"), node("n2")},
			tasks: func(svc *object.Service) []*object.Task {
				tasks := []*object.Task{on(pending(svc, 8), "n2", swarm.TaskStateRunning), pending(svc, 1)}
				for _, n := range many {
					tasks = append(tasks, failure(svc, n, now.Add(-time.Minute)))
				}
				return tasks
			},
			want: []string{"web-1 n2"},
		},
		{
			name: "failures of long ago", nodes: []*object.Node{node("n1"), node("n2")},
			tasks: func(svc *object.Service) []*object.Task {
				tasks := []*object.Task{on(pending(svc, 8), "n2", swarm.TaskStateRunning), pending(svc, 1)}
				for _, n := range many {
					tasks = append(tasks, failure(svc, n, now.Add(-6*time.Minute)))
				}
				return tasks
			},
			want: []string{"web-1 n1"},
		},
		{
			name: "spread over a label", nodes: zones, spec: spread,
			tasks: func(svc *object.Service) []*object.Task {
				return []*object.Task{pending(svc, 1), pending(svc, 2), pending(svc, 3), pending(svc, 4)}
			},
			want: []string{"web-1 n1", "web-2 n4", "web-3 n2", "web-4 n4"},
		},
		{
			name: "host port once on a node", nodes: []*object.Node{node("n1"), node("n2")},
			spec: swarm.ServiceSpec{EndpointSpec: &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 80, TargetPort: 80, PublishMode: swarm.PortConfigPublishModeHost}}}},
			tasks: func(svc *object.Service) []*object.Task {
				return []*object.Task{pending(svc, 1), pending(svc, 2), pending(svc, 3)}
			},
			want: []string{"web-1 n1", "web-2 n2", "web-3: no suitable node (host-mode port already in use on 2 nodes)"},
		},
		{
			name: "max replicas", nodes: []*object.Node{node("n1")},
			spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{Placement: &swarm.Placement{MaxReplicas: 1}}},
			tasks: func(svc *object.Service) []*object.Task {
				return []*object.Task{on(pending(svc, 1), "n1", swarm.TaskStateRunning), pending(svc, 2)}
			},
			want: []string{"web-2: no suitable node (max replicas per node limit exceed)"},
		},
		{
			name: "made for a node", nodes: []*object.Node{node("n1"), node("n2", func(n *object.Node) { n.Status.State = swarm.NodeStateDown })},
			tasks: func(svc *object.Service) []*object.Task {
				return []*object.Task{on(pending(svc, 1), "n1", swarm.TaskStatePending), on(pending(svc, 2), "n2", swarm.TaskStatePending)}
			},
			want: []string{"web-1 n1", "web-2: no suitable node (1 node not available for new tasks)"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, svc := swarmOf(t, tt.spec, tt.nodes...)
			create(t, s, tt.tasks(svc)...)
			if diff := cmp.Diff(tt.want, once(s, now)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlan_Properties lets a swarm live through random changes. After each
// step: no node has less than nothing, no task was placed on an unfit node, a
// scheduler that followed decides as one that starts anew, and deciding twice
// changes nothing.
func TestPlan_Properties(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var nodes []*object.Node
		for i := range 8 {
			nodes = append(nodes, node(fmt.Sprintf("n%d", i), label("z", fmt.Sprint(i%3))))
		}
		spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{
			Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: int64(rng.IntN(3)) * 7e8, MemoryBytes: 1 << 30}},
			Placement: &swarm.Placement{MaxReplicas: uint64(rng.IntN(2) * 4), Constraints: []string{"node.labels.z!=2"}},
		}}
		s, svc := swarmOf(t, spec, nodes...)
		follower := new(scheduler.Scheduler)
		var after uint64
		for step := range 40 {
			s.Write(t, func(tx *store.Tx) { disturb(rng, s.Snapshot(), tx, svc, step) })
			ch := s.Since(after)
			now := time.Unix(int64(1e9+step), 0)
			got, _ := follower.Plan(nil, ch, now)
			after = ch.Snapshot.Index
			if diff := cmp.Diff(once(s, now), describe(got)); diff != "" {
				t.Fatalf("seed %d, step %d: plans differ (-anew +followed):\n%s", seed, step, diff)
			}
			if rng.IntN(4) == 0 && step < 39 {
				continue // the write is lost, as after a conflict
			}
			s.Write(t, func(tx *store.Tx) {
				for _, o := range got.Update {
					tx.Update(o)
				}
			})
			inspect(t, s.Snapshot(), svc, got)
			if again := once(s, now); len(again) > 0 {
				t.Fatalf("seed %d, step %d: decided twice: %v", seed, step, again)
			}
		}
	}
}

// TestPlan_FewAndMany checks that the short way to place few tasks leads where
// the long one does, which a preference that prefers nothing makes it take.
func TestPlan_FewAndMany(t *testing.T) {
	for seed := range uint64(20) {
		var got [2][]string
		for i := range got {
			rng := rand.New(rand.NewPCG(seed, 2))
			var nodes []*object.Node
			for n := range 64 {
				nodes = append(nodes, node(fmt.Sprintf("n%02d", n), label("z", fmt.Sprint(rng.IntN(3)))))
			}
			spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{Placement: &swarm.Placement{Constraints: []string{"node.labels.z!=2"}}}}
			if i == 1 {
				spec.TaskTemplate.Placement.Preferences = []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.none"}}}
			}
			s, svc := swarmOf(t, spec, nodes...)
			for slot := range 40 {
				task := on(pending(svc, 100+slot), fmt.Sprintf("n%02d", rng.IntN(64)), swarm.TaskStateRunning)
				if rng.IntN(3) > 0 {
					task.ServiceID = "other"
				}
				create(t, s, task)
			}
			create(t, s, pending(svc, 1), pending(svc, 2), pending(svc, 3), pending(svc, 4), pending(svc, 5))
			got[i] = once(s, time.Now())
		}
		if diff := cmp.Diff(got[1], got[0]); diff != "" {
			t.Errorf("seed %d: plan (-many +few):\n%s", seed, diff)
		}
	}
}

func disturb(rng *rand.Rand, s *store.Snapshot, tx *store.Tx, svc *object.Service, step int) {
	for i := range rng.IntN(6) {
		tx.Create(pending(svc, step*10+i+1))
	}
	for n := range s.Nodes.All() {
		if rng.IntN(10) == 0 {
			n = n.Clone().(*object.Node)
			n.Status.State = []swarm.NodeState{swarm.NodeStateReady, swarm.NodeStateDown}[rng.IntN(2)]
			tx.Update(n)
		}
	}
	for task := range s.Tasks.All() {
		if task.Status.State == swarm.TaskStatePending || rng.IntN(4) > 0 {
			continue
		}
		task = task.Clone().(*object.Task)
		switch rng.IntN(3) {
		case 0:
			tx.Delete(task)
			continue
		case 1:
			task.DesiredState = swarm.TaskStateShutdown
		case 2:
			task.Status.State = swarm.TaskStateFailed
		}
		tx.Update(task)
	}
}

func inspect(t *testing.T, s *store.Snapshot, svc *object.Service, made loop.Changes) {
	t.Helper()
	want := scheduler.Reserved(&svc.Spec.TaskTemplate)
	for n := range s.Nodes.All() {
		free, active := scheduler.Have(&n.Description.Resources), 0
		for task := range s.Tasks.By(store.ByNode, n.ID) {
			if !object.Ended(task.Status.State) {
				free.Take(&want, 1)
				if !object.Ended(task.DesiredState) {
					active++
				}
			}
		}
		if free.CPU < 0 || free.Memory < 0 {
			t.Fatalf("node %s has less than nothing: %+v", n.ID, free)
		}
		if limit := svc.Spec.TaskTemplate.Placement.MaxReplicas; limit > 0 && active > int(limit) {
			t.Fatalf("node %s runs %d replicas, of at most %d", n.ID, active, limit)
		}
	}
	for _, o := range made.Update {
		task := o.(*object.Task)
		if task.NodeID == "" {
			continue
		}
		n, _ := s.Nodes.Get(task.NodeID)
		if n.Status.State != swarm.NodeStateReady || n.Spec.Labels["z"] == "2" {
			t.Fatalf("task %s placed on unfit node %s", task.ID, n.ID)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, size := range []struct{ nodes, services, tasks int }{
		{1000, 10, 10_000}, {10_000, 10, 100_000}, {10_000, 1000, 100_000},
	} {
		b.Run(fmt.Sprintf("nodes=%d/services=%d/tasks=%d", size.nodes, size.services, size.tasks), func(b *testing.B) {
			s := storetest.New(b)
			fill(b, s, size.nodes, func(tx *store.Tx, i int) {
				tx.Create(node(fmt.Sprintf("n%05d", i), func(n *object.Node) { n.Description.Resources.NanoCPUs = 64e9 }))
			})
			var services []*object.Service
			fill(b, s, size.services, func(tx *store.Tx, i int) {
				spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{
					Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e9}},
					Placement: &swarm.Placement{Constraints: []string{"node.platform.os==linux"}},
				}}
				spec.Name = fmt.Sprintf("s%d", i)
				services = append(services, store.CreateService(tx, spec, nil))
			})
			for i := range services {
				services[i], _ = s.Snapshot().Services.Get(services[i].ID)
			}
			fill(b, s, size.tasks, func(tx *store.Tx, i int) {
				tx.Create(pending(services[i%size.services], i+1))
			})
			ch := s.Since(0)
			var idle scheduler.Scheduler
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				idle = scheduler.Scheduler{}
				b.StartTimer()
				c, _ := idle.Plan(nil, ch, now)
				if len(c.Update) != size.tasks || strings.Contains(c.Update[0].(*object.Task).NodeID, " ") {
					b.Fatalf("%d tasks placed, not %d", len(c.Update), size.tasks)
				}
			}
			b.ReportMetric(float64(size.tasks)*float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}

func fill(b *testing.B, s *storetest.Local, n int, do func(tx *store.Tx, i int)) {
	b.Helper()
	for i := 0; i < n; i += 500 {
		s.Write(b, func(tx *store.Tx) {
			for j := i; j < min(n, i+500); j++ {
				do(tx, j)
			}
		})
	}
}
