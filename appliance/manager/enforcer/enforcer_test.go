package enforcer_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/enforcer"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func TestPlan(t *testing.T) {
	type state = swarm.TaskState
	const running = swarm.TaskStateRunning
	tests := []struct {
		name         string
		zone         string
		cpu          int64
		availability swarm.NodeAvailability
		global       bool
		tasks        []state // of one service, which wants zone a and 1 CPU
		elsewhere    []state // of the same service, on another node
		want         string  // which tasks are rejected
		next         bool
	}{
		{name: "fit", zone: "a", cpu: 4, tasks: []state{running, running}},
		{name: "constraint, one at a time", zone: "b", cpu: 4, tasks: []state{running, running}, want: "t0", next: true},
		{name: "another is on its way", zone: "b", cpu: 4, tasks: []state{running}, elsewhere: []state{swarm.TaskStatePreparing}, next: true},
		{name: "another runs", zone: "b", cpu: 4, tasks: []state{running}, elsewhere: []state{running}, want: "t0"},
		{name: "the youngest has no room", zone: "a", cpu: 2, tasks: []state{running, running, running}, want: "t2"},
		{name: "paused", zone: "b", cpu: 4, availability: swarm.NodeAvailabilityPause, tasks: []state{running}},
		{name: "what ended does not matter", zone: "b", cpu: 4, tasks: []state{swarm.TaskStateFailed}},
		{name: "global", zone: "b", cpu: 4, global: true, tasks: []state{running}},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			s := storetest.New(t)
			svc := &object.Service{SpecVersion: swarm.Version{Index: 1}}
			svc.ID = "s"
			svc.Spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==a"}}
			if tt.global {
				svc.Spec.Mode.Global = &swarm.GlobalService{}
			}
			rev := &object.Revision{ServiceID: "s", SpecVersion: svc.SpecVersion}
			rev.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1}}
			n := &object.Node{}
			n.ID, n.Status.State, n.Spec.Availability = "n1", swarm.NodeStateReady, swarm.NodeAvailabilityActive
			if tt.availability != "" {
				n.Spec.Availability = tt.availability
			}
			n.Spec.Labels = map[string]string{"zone": tt.zone}
			n.Description.Resources.NanoCPUs = tt.cpu
			s.Write(t, func(tx *store.Tx) { tx.Create(svc); tx.Create(rev); tx.Create(n) })
			add := func(name, node string, states []state) {
				for i, st := range states {
					time.Sleep(time.Second) // the order in which they were made
					task := &object.Task{ID: fmt.Sprintf("%s%d", name, i), ServiceID: "s", SpecVersion: svc.SpecVersion, NodeID: node, DesiredState: running}
					task.Status.State = st
					s.Write(t, func(tx *store.Tx) { tx.Create(task) })
				}
			}
			add("t", "n1", tt.tasks)
			add("x", "n2", tt.elsewhere)
			c, next := enforcer.Plan(s.Snapshot(), "n1", time.Now())
			var got []string
			for _, o := range c.Update {
				task := o.(*object.Task)
				got = append(got, task.ID)
				if st := task.Status; st.State != swarm.TaskStateRejected || st.Message != "task rejected by constraint enforcer" ||
					st.Err != "assigned node no longer meets constraints" {
					t.Errorf("%s: status %+v", tt.name, st)
				}
			}
			if strings.Join(got, " ") != tt.want || next.IsZero() == tt.next {
				t.Errorf("%s: got %v, next %v, want %q, next %v", tt.name, got, next, tt.want, tt.next)
			}
		})
	}
}
