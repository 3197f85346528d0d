package reaper_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/reaper"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func TestPlanNetworks(t *testing.T) {
	s := storetest.New(t)
	on := func(id string) []object.TaskNetwork { return []object.TaskNetwork{{ID: id}} }
	s.Write(t, func(tx *store.Tx) {
		for _, name := range []string{"kept", "empty", "ended", "ending", "visited"} {
			n := &object.Network{PendingDelete: name != "kept"}
			n.ID, n.Spec.Name = name, name
			tx.Create(n)
		}
		for name, state := range map[string]swarm.TaskState{"ended": swarm.TaskStateFailed, "ending": swarm.TaskStateRunning} {
			task := &object.Task{ID: name, DesiredState: swarm.TaskStateRemove, Networks: on(name)}
			task.Status.State = state
			tx.Create(task)
		}
		n := &object.Node{}
		n.ID = "node"
		tx.Create(n)
		tx.Create(&object.Guest{ID: "here", NodeID: "node", Network: object.TaskNetwork{ID: "visited"}})
		tx.Create(&object.Guest{ID: "lost", NodeID: "gone", Network: object.TaskNetwork{ID: "visited"}})
	})
	step := func(ch store.Changes, want string) {
		t.Helper()
		c, _ := reaper.PlanNetworks(nil, ch, time.Now())
		var got []string
		for _, o := range c.Delete {
			got = append(got, o.Key())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("deleted %v, want %s", got, want)
		}
		s.Write(t, func(tx *store.Tx) {
			for _, o := range c.Delete {
				tx.Delete(o)
			}
		})
	}
	step(s.Since(0), "empty ended lost")
	before := s.Snapshot().Index
	s.Write(t, func(tx *store.Tx) {
		n, _ := s.Snapshot().Nodes.Get("node")
		tx.Delete(n)
		task, _ := s.Snapshot().Tasks.Get("ending")
		tx.Delete(task)
	})
	step(s.Since(before), "ending here")
	step(s.Since(before), "visited")
	step(s.Since(before), "")
}
