package reaper_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/reaper"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// task reads "id slot desired state".
func task(text string) *object.Task {
	t := &object.Task{ServiceID: "s", SpecVersion: swarm.Version{Index: 1}}
	if _, err := fmt.Sscan(text, &t.ID, &t.Slot, &t.DesiredState, &t.Status.State); err != nil {
		panic(err)
	}
	// In order of their IDs.
	t.Status.Timestamp = time.Unix(int64(t.ID[0]), 0)
	return t
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name    string
		limit   int64
		policy  *swarm.RestartPolicy
		deleted bool // the service
		tasks   []string
		old     bool // there are revisions 1, which the tasks refer to, and 2, the service's
		want    string
	}{
		{
			name: "history", limit: 2, want: "a",
			tasks: []string{"a 1 shutdown failed", "b 1 shutdown shutdown", "c 1 shutdown complete", "d 1 running running", "e 2 shutdown failed"},
		},
		{name: "no limit", limit: -1, tasks: []string{"a 1 shutdown failed", "b 1 shutdown failed", "c 1 shutdown failed"}},
		{name: "nothing kept", limit: 0, tasks: []string{"a 1 shutdown failed", "b 1 running running"}, want: "a"},
		{name: "the last word of a slot", limit: 0, tasks: []string{"a 1 shutdown failed", "b 1 shutdown failed"}, want: "a"},
		{
			name: "attempts count more", limit: 1, policy: &swarm.RestartPolicy{MaxAttempts: new(uint64(2))}, want: "a",
			tasks: []string{"a 1 shutdown failed", "b 1 shutdown failed", "c 1 shutdown failed", "d 1 shutdown failed"},
		},
		{
			name: "attempts count less", limit: 5, policy: &swarm.RestartPolicy{MaxAttempts: new(uint64(1))}, want: "a",
			tasks: []string{"a 1 shutdown failed", "b 1 shutdown failed", "c 1 shutdown failed"},
		},
		{name: "what may run stays", limit: 0, tasks: []string{"a 1 shutdown running", "b 1 remove running", "c 1 remove starting", "d 1 running pending"}},
		{name: "what just died stays", limit: 0, tasks: []string{"a 1 running failed"}},
		{name: "removed", limit: 5, tasks: []string{"a 1 remove shutdown", "b 1 remove pending", "c 1 remove orphaned"}, want: "a b c"},
		{name: "never started", limit: 0, tasks: []string{"a 1 shutdown new", "b 1 running running"}, want: "a"},
		{name: "service gone", limit: 5, deleted: true, old: true, tasks: []string{"a 1 remove shutdown", "b 1 remove running"}, want: "a s/2"},
		{name: "service and tasks gone", limit: 5, deleted: true, old: true, tasks: []string{"a 1 remove shutdown"}, want: "a s/1 s/2"},
		{name: "old revision", limit: 5, old: true, tasks: []string{"a 1 remove shutdown"}, want: "a s/1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := storetest.New(t)
			s.Write(t, func(tx *store.Tx) {
				c := &object.Cluster{ID: "c"}
				c.Spec.Orchestration.TaskHistoryRetentionLimit = &tt.limit
				tx.Create(c)
				if !tt.deleted {
					svc := &object.Service{SpecVersion: swarm.Version{Index: 2}}
					svc.ID, svc.Spec.TaskTemplate.RestartPolicy = "s", tt.policy
					tx.Create(svc)
				}
				for _, text := range tt.tasks {
					tx.Create(task(text))
				}
				if tt.old {
					tx.Create(&object.Revision{ServiceID: "s", SpecVersion: swarm.Version{Index: 1}})
					tx.Create(&object.Revision{ServiceID: "s", SpecVersion: swarm.Version{Index: 2}})
				}
			})
			c, _ := reaper.Plan(s.Snapshot(), "s", time.Now())
			var got []string
			for _, o := range c.Delete {
				got = append(got, o.Key())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("deleted (-want +got):\n%s", diff)
			}
		})
	}
}
