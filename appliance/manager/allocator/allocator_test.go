package allocator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/allocator"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// port reads "8080:80/udp" or "host 8080:80".
func port(text string) (p swarm.PortConfig) {
	if after, ok := strings.CutPrefix(text, "host "); ok {
		p.PublishMode, text = swarm.PortConfigPublishModeHost, after
	}
	var protocol string
	if n, err := fmt.Sscanf(text, "%d:%d/%s", &p.PublishedPort, &p.TargetPort, &protocol); err != nil && n < 2 {
		panic(err)
	}
	p.Protocol = network.IPProtocol(protocol)
	return p
}

type service struct {
	name  string
	want  []string
	had   []string // what it asked for when its ports were chosen
	ports []uint32 // that were chosen then
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name     string
		services []service
		want     []string
	}{
		{name: "no ports", services: []service{{name: "a"}}, want: []string{"a:", "a task pending"}},
		{name: "as asked", services: []service{{name: "a", want: []string{"8080:80", "53:53/udp"}}}, want: []string{"a: 8080/tcp 53/udp", "a task pending"}},
		{
			name: "chosen", services: []service{{name: "a", want: []string{"0:80", "0:81", "0:80/udp"}}},
			want: []string{"a: 30000/tcp 30001/tcp 30000/udp", "a task pending"},
		},
		{
			name: "chosen around what is taken", services: []service{
				{name: "a", had: []string{"30000:80"}, want: []string{"30000:80"}, ports: []uint32{30000}},
				{name: "b", want: []string{"30001:80", "0:81"}},
			},
			want: []string{"a: 30000/tcp", "a task pending", "b: 30001/tcp 30002/tcp", "b task pending"},
		},
		{
			name: "kept over an update", services: []service{
				{name: "a", had: []string{"0:80"}, ports: []uint32{30005}, want: []string{"0:80", "9000:90"}},
			},
			want: []string{"a: 30005/tcp 9000/tcp", "a task pending"},
		},
		{
			name: "let go", services: []service{{name: "a", had: []string{"0:80"}, ports: []uint32{30005}}},
			want: []string{"a:", "a task pending"},
		},
		{
			name: "one of two in the same round", services: []service{{name: "a", want: []string{"80:80"}}, {name: "b", want: []string{"80:80"}}},
			want: []string{"a: 80/tcp", "a task pending", "b task new: port '80' is already in use by service 'a' (a) as an ingress port"},
		},
		{
			name: "other protocol", services: []service{{name: "a", want: []string{"53:53/tcp"}}, {name: "b", want: []string{"53:53/udp"}}},
			want: []string{"a: 53/tcp", "a task pending", "b: 53/udp", "b task pending"},
		},
		{
			name: "host and ingress", services: []service{{name: "a", want: []string{"host 80:80"}}, {name: "b", want: []string{"80:80"}}},
			want: []string{"a: 80/tcp", "a task pending", "b task new: port '80' is already in use by service 'a' (a) as a host-published port"},
		},
		{
			name: "host and host", services: []service{{name: "a", want: []string{"host 80:80"}}, {name: "b", want: []string{"host 80:80"}}},
			want: []string{"a: 80/tcp", "a task pending", "b: 80/tcp", "b task pending"},
		},
		{name: "host, the node's choice", services: []service{{name: "a", want: []string{"host 0:80"}}}, want: []string{"a: 0/tcp", "a task pending"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := swarmStore(t)
			s.Write(t, func(tx *store.Tx) {
				for _, in := range tt.services {
					tx.Create(in.service())
					task := &object.Task{ID: in.name, ServiceID: in.name, DesiredState: swarm.TaskStateRunning}
					task.Status.State = swarm.TaskStateNew
					tx.Create(task)
				}
			})
			if diff := cmp.Diff(tt.want, plan(t, s)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if again := plan(t, s); len(again) > 0 {
				t.Errorf("decided twice: %v", again)
			}
		})
	}
}

// swarmStore holds a swarm with a network for its routing mesh.
func swarmStore(tb testing.TB) *storetest.Local {
	tb.Helper()
	s := storetest.New(tb)
	s.Write(tb, func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: "c"})
		tx.Create(storetest.Ingress())
	})
	plan(tb, s)
	return s
}

func (in service) service() *object.Service {
	svc := &object.Service{}
	svc.ID, svc.Spec.Name = in.name, in.name
	svc.Spec.EndpointSpec = &swarm.EndpointSpec{}
	for _, p := range in.want {
		svc.Spec.EndpointSpec.Ports = append(svc.Spec.EndpointSpec.Ports, port(p))
	}
	if in.had != nil {
		was := swarm.EndpointSpec{}
		for i, p := range in.had {
			was.Ports = append(was.Ports, port(p))
			got := port(p)
			got.PublishedPort, got.Protocol, got.PublishMode = in.ports[i], network.TCP, swarm.PortConfigPublishModeIngress
			svc.Endpoint.Ports = append(svc.Endpoint.Ports, got)
		}
		svc.Endpoint.Spec = *object.WithDefaults(swarm.ServiceSpec{EndpointSpec: &was}).EndpointSpec
	}
	return svc
}

// plan decides, says what and writes it.
func plan(tb testing.TB, s *storetest.Local) (out []string) {
	tb.Helper()
	c, _ := allocator.New().Plan(nil, s.Since(0), time.Now())
	if c.Empty() {
		return nil
	}
	for _, o := range c.Update {
		switch o := o.(type) {
		case *object.Service:
			line := o.Spec.Name + ":"
			for _, p := range o.Endpoint.Ports {
				line += fmt.Sprintf(" %d/%s", p.PublishedPort, p.Protocol)
			}
			out = append(out, line)
		case *object.Task:
			line := fmt.Sprintf("%s task %s", o.ServiceID, o.Status.State)
			if o.Status.Err != "" {
				line += ": " + o.Status.Err
			}
			out = append(out, line)
		}
	}
	s.Write(tb, func(tx *store.Tx) {
		for _, o := range c.Update {
			tx.Update(o)
		}
	})
	return out
}

// TestPlan_NoPortTwice fills the whole range and asks for more.
func TestPlan_NoPortTwice(t *testing.T) {
	s := swarmStore(t)
	const each, services = 100, 29 // more than the 2768 there are
	s.Write(t, func(tx *store.Tx) {
		for i := range services {
			in := service{name: fmt.Sprintf("s%02d", i)}
			for p := range each {
				in.want = append(in.want, fmt.Sprintf("0:%d", p+1))
			}
			tx.Create(in.service())
		}
	})
	plan(t, s)
	used, without := map[uint32]string{}, 0
	for svc := range s.Snapshot().Services.All() {
		if len(svc.Endpoint.Ports) == 0 {
			without++
		}
		for _, p := range svc.Endpoint.Ports {
			if other := used[p.PublishedPort]; other != "" {
				t.Fatalf("port %d is given to %s and %s", p.PublishedPort, other, svc.ID)
			}
			if p.PublishedPort < 30000 || p.PublishedPort > 32767 {
				t.Fatalf("port %d is out of range", p.PublishedPort)
			}
			used[p.PublishedPort] = svc.ID
		}
	}
	if without != 2 || len(used) != 2700 {
		t.Errorf("%d ports in use, %d services without; want 2700 and 2", len(used), without)
	}
}
