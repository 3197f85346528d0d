package orchestrator_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/orchestrator"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

var start = time.Unix(1e9, 0)

// state is a service with one revision, the nodes n1 to n4 and tasks.
type state struct {
	*storetest.Local
	service *object.Service
}

func set(t *testing.T, spec swarm.ServiceSpec, tasks ...string) *state {
	t.Helper()
	s := &state{Local: storetest.New(t)}
	spec.Name = "web"
	s.Write(t, func(tx *store.Tx) {
		for i, n := range []struct {
			state        swarm.NodeState
			availability swarm.NodeAvailability
		}{{"ready", "active"}, {"ready", "drain"}, {"down", "active"}, {"ready", "pause"}} {
			o := &object.Node{}
			o.ID, o.Status.State, o.Spec.Availability = fmt.Sprintf("n%d", i+1), n.state, n.availability
			tx.Create(o)
		}
		s.service = store.CreateService(tx, spec, nil)
	})
	s.reload()
	for _, text := range tasks { // each later than the one before
		s.Write(t, func(tx *store.Tx) { tx.Create(s.task(text)) })
	}
	return s
}

func (s *state) reload() { s.service, _ = s.Snapshot().Services.Get(s.service.ID) }

// task reads "id slot node desired state".
func (s *state) task(text string) *object.Task {
	t := &object.Task{ServiceID: s.service.ID, SpecVersion: s.service.SpecVersion}
	if _, err := fmt.Sscan(text, &t.ID, &t.Slot, &t.NodeID, &t.DesiredState, &t.Status.State); err != nil {
		panic(err)
	}
	t.NodeID = strings.Trim(t.NodeID, "-")
	t.AppliedAt, t.Status.Timestamp = start.UnixNano(), start
	return t
}

// describe says what is to be written, one line for each object.
func describe(c loop.Changes, now time.Time) (out []string) {
	for _, o := range c.Update {
		switch o := o.(type) {
		case *object.Task:
			out = append(out, fmt.Sprintf("%s %s %s", o.ID, o.DesiredState, o.Status.State))
		case *object.Service:
			out = append(out, "service "+string(o.UpdateStatus.State))
		}
	}
	for _, o := range c.Create {
		t := o.(*object.Task)
		line := fmt.Sprintf("new %d", t.Slot)
		if t.NodeID != "" {
			line = "new on " + t.NodeID
		}
		line += " " + string(t.DesiredState)
		if t.NotBefore != 0 {
			line += " in " + time.Unix(0, t.NotBefore).Sub(now).String()
		}
		out = append(out, line)
	}
	for _, o := range c.Delete {
		out = append(out, fmt.Sprintf("delete %s", o.Kind()))
	}
	slices.Sort(out)
	return out
}

func replicas(n uint64) swarm.ServiceSpec {
	spec := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "v1"}
	return spec
}

func with(spec swarm.ServiceSpec, do func(*swarm.ServiceSpec)) swarm.ServiceSpec {
	do(&spec)
	return spec
}

func TestPlan(t *testing.T) {
	global := with(replicas(0), func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} })
	tests := []struct {
		name  string
		spec  swarm.ServiceSpec
		tasks []string
		want  []string
	}{
		{name: "new", spec: replicas(2), want: []string{"new 1 running", "new 2 running"}},
		{name: "as it is", spec: replicas(1), tasks: []string{"a 1 n1 running running"}},
		{name: "the lowest free slot", spec: replicas(3), tasks: []string{"a 1 n1 running running", "c 3 n1 running running"}, want: []string{"new 2 running"}},
		{
			name: "a slot that is being left waits", spec: replicas(1), tasks: []string{"a 1 n1 remove running"},
			want: []string{"new 1 ready"},
		},
		{
			name: "fewer: not running, then fullest node, then highest", spec: replicas(2),
			tasks: []string{"a 1 n1 running running", "b 2 n1 running running", "c 3 n4 running running", "d 4 n1 running preparing"},
			want:  []string{"b remove running", "d remove preparing"},
		},
		{name: "fewer, never started", spec: replicas(0), tasks: []string{"a 1 - running pending"}, want: []string{"a remove shutdown"}},
		{
			name: "history of a slot that goes", spec: replicas(0), tasks: []string{"a 1 n1 shutdown failed", "b 1 n1 running running"},
			want: []string{"a remove failed", "b remove running"},
		},
		{name: "died", spec: replicas(1), tasks: []string{"a 1 n1 running failed"}, want: []string{"a shutdown failed", "new 1 ready in 5s"}},
		{name: "died, delay over", spec: replicas(1), tasks: []string{"a 1 n1 shutdown failed", "b 1 n1 ready ready"}, want: []string{"b running ready"}},
		{
			name: "died, and that is it", tasks: []string{"a 1 n1 running failed"}, want: []string{"a shutdown failed"},
			spec: with(replicas(1), func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "none"} }),
		},
		{
			name: "spent", tasks: []string{"a 1 n1 shutdown failed"},
			spec: with(replicas(1), func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "none"} }),
		},
		{name: "drained", spec: replicas(1), tasks: []string{"a 1 n2 running running"}, want: []string{"a shutdown running", "new 1 ready"}},
		{name: "down", spec: replicas(1), tasks: []string{"a 1 n3 running running"}, want: []string{"a shutdown running", "new 1 running"}},
		{name: "deleted node", spec: replicas(1), tasks: []string{"a 1 n9 running running"}, want: []string{"a shutdown orphaned", "new 1 running"}},
		{name: "paused node", spec: replicas(1), tasks: []string{"a 1 n4 running running"}},
		{name: "the one before still runs", spec: replicas(1), tasks: []string{"a 1 n2 shutdown running", "b 1 n1 ready ready"}},
		{name: "global", spec: global, want: []string{"new on n1 running"}},
		{
			name: "global, nodes that do not suit", spec: global,
			tasks: []string{"a 0 n1 running running", "b 0 n2 running running", "c 0 n3 running running", "d 0 n4 running running"},
			want:  []string{"b shutdown running", "c shutdown running"},
		},
		{name: "global, node is back", spec: global, tasks: []string{"a 0 n1 shutdown shutdown"}, want: []string{"new on n1 running"}},
		{name: "global, died", spec: global, tasks: []string{"a 0 n1 running complete"}, want: []string{"a shutdown complete", "new on n1 ready in 5s"}},
		{name: "global, deleted node", spec: global, tasks: []string{"a 0 n1 running running", "b 0 n9 running running"}, want: []string{"b remove orphaned"}},
		{
			name: "job", tasks: []string{"a 1 n1 running failed"},
			spec: with(replicas(1), func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{}} }),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := set(t, tt.spec, tt.tasks...)
			now := time.Now()
			c, _ := orchestrator.Plan(s.Snapshot(), s.service.ID, now)
			if diff := cmp.Diff(tt.want, describe(c, now)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			s.apply(t, c)
			again, _ := orchestrator.Plan(s.Snapshot(), s.service.ID, now)
			if twice := describe(again, now); len(twice) > 0 {
				t.Errorf("decided twice: %v", twice)
			}
		})
	}
}

func (s *state) apply(t *testing.T, c loop.Changes) {
	t.Helper()
	s.Write(t, func(tx *store.Tx) {
		for _, o := range c.Update {
			tx.Update(o)
		}
		for _, o := range c.Create {
			if task, ok := o.(*object.Task); ok {
				task.ID = object.NewID()
			}
			tx.Create(o)
		}
		for _, o := range c.Delete {
			tx.Delete(o)
		}
	})
}

func TestPlan_Dirty(t *testing.T) {
	tests := []struct {
		name  string
		edit  func(*swarm.ServiceSpec)
		dirty bool
	}{
		{name: "replicas", edit: func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1))} }},
		{name: "update configuration", edit: func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 3} }},
		{name: "service labels", edit: func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"a": "b"} }},
		{name: "a default, spelled out", edit: func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.StopGracePeriod = new(10 * time.Second) }},
		{name: "placement that the node satisfies", edit: func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.id==n1"}}
		}},
		{name: "placement that it does not", dirty: true, edit: func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.id!=n1"}}
		}},
		{name: "image", dirty: true, edit: func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "v2" }},
		{name: "force", dirty: true, edit: func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ }},
		{name: "ports", dirty: true, edit: func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
		}},
		{name: "networks", dirty: true, edit: func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "net"}}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := set(t, replicas(1), "a 1 n1 running running")
			s.Write(t, func(tx *store.Tx) {
				spec := s.service.Clone().(*object.Service).Spec
				tt.edit(&spec)
				store.UpdateService(tx, s.service, spec, nil)
			})
			now := time.Now()
			c, _ := orchestrator.Plan(s.Snapshot(), s.service.ID, now)
			var want []string
			if tt.dirty {
				want = []string{"a shutdown running", "new 1 ready", "service updating"}
			}
			if diff := cmp.Diff(want, describe(c, now)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlan_Delete(t *testing.T) {
	s := set(t, replicas(3), "a 1 n1 running running", "b 2 n3 running running", "c 3 - running pending", "d 1 n1 shutdown failed")
	s.Write(t, func(tx *store.Tx) {
		svc := s.service.Clone().(*object.Service)
		svc.PendingDelete = true
		tx.Update(svc)
	})
	now := time.Now()
	c, _ := orchestrator.Plan(s.Snapshot(), s.service.ID, now)
	want := []string{"a remove running", "b remove orphaned", "c remove shutdown", "d remove failed"}
	if diff := cmp.Diff(want, describe(c, now)); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	s.Write(t, func(tx *store.Tx) {
		for task := range s.Snapshot().Tasks.All() {
			tx.Delete(task)
		}
	})
	c, _ = orchestrator.Plan(s.Snapshot(), s.service.ID, now)
	if diff := cmp.Diff([]string{"delete revision", "delete service"}, describe(c, now)); diff != "" {
		t.Errorf("plan without tasks (-want +got):\n%s", diff)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("replicas=%d", n), func(b *testing.B) {
			s := storetest.New(b)
			var svc *object.Service
			s.Write(b, func(tx *store.Tx) {
				node := &object.Node{}
				node.ID, node.Status.State = "n1", swarm.NodeStateReady
				tx.Create(node)
				svc = store.CreateService(tx, replicas(uint64(n)), nil)
			})
			svc, _ = s.Snapshot().Services.Get(svc.ID)
			s.Write(b, func(tx *store.Tx) {
				for i := range n {
					t := &object.Task{ID: fmt.Sprint(i), ServiceID: svc.ID, SpecVersion: svc.SpecVersion, Slot: i + 1, NodeID: "n1"}
					t.DesiredState, t.Status.State = swarm.TaskStateRunning, swarm.TaskStateRunning
					tx.Create(t)
				}
			})
			snap, now := s.Snapshot(), time.Now()
			b.ReportAllocs()
			for b.Loop() {
				if c, _ := orchestrator.Plan(snap, svc.ID, now); !c.Empty() {
					b.Fatal("something is to be done")
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
