// Package enforcer rejects tasks whose node no longer suits them: it does not
// meet the service's constraints, or has not the resources that they reserve.
//
// It looks at nodes that are ready and active, when they change. Tasks of one
// service go one after another, so that those which are left serve until the
// replacement of the last one runs. What a changed service wants of its tasks is
// the updater's business.
package enforcer

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/scheduler"
	"skep/store"
	"skep/store/object"
)

const (
	// pace is how often the enforcer looks whether it may go on.
	pace = time.Second
	// patience is how long a task on its way to run holds up the others.
	patience = 30 * time.Second
)

// Run enforces until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error {
	return loop.Follow(ctx, s, loop.Each(nodes, Plan))
}

func nodes(_ *store.Snapshot, ch store.Changes) []string {
	ids := map[string]bool{}
	if ch.All {
		for n := range ch.Snapshot.Nodes.All() {
			ids[n.ID] = true
		}
	}
	for _, k := range ch.Keys {
		if k.Kind == object.KindNode {
			ids[k.ID] = true
		}
	}
	return slices.Collect(maps.Keys(ids))
}

// Plan decides which tasks of a node are rejected now.
func Plan(snap *store.Snapshot, id string, now time.Time) (c loop.Changes, next time.Time) {
	n, ok := snap.Nodes.Get(id)
	if !ok || n.Status.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive {
		return c, next
	}
	told := map[string]bool{}
	for _, t := range unfit(snap, n) {
		if told[t.ServiceID] || moving(snap, t.ServiceID, now) {
			next = now.Add(pace)
			continue
		}
		told[t.ServiceID] = true
		t = t.Clone().(*object.Task)
		t.Status.Timestamp, t.Status.State = now, swarm.TaskStateRejected
		t.Status.Message = "task rejected by constraint enforcer"
		t.Status.Err = "assigned node no longer meets constraints"
		t.AppliedAt = now.UnixNano()
		c.Update = append(c.Update, t)
	}
	return c, next
}

// unfit are the tasks on a node that it does not suit, the oldest last.
func unfit(snap *store.Snapshot, n *object.Node) []*object.Task {
	var tasks []*object.Task
	for t := range snap.Tasks.By(store.ByNode, n.ID) {
		if object.Rank(t.Status.State) >= object.Rank(swarm.TaskStateAssigned) && !object.Ended(t.Status.State) {
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(a, b *object.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	free := scheduler.Have(&n.Description.Resources)
	constraints := map[string][]object.Constraint{}
	var out []*object.Task
	for _, t := range tasks {
		var reserved scheduler.Resources
		if rev := snap.Revision(t.ServiceID, t.SpecVersion); rev != nil {
			reserved = scheduler.Reserved(&rev.Spec)
		}
		wanted := object.Rank(t.DesiredState) <= object.Rank(swarm.TaskStateRunning)
		cs, ok := constraints[t.ServiceID]
		if !ok {
			if svc, found := snap.Services.Get(t.ServiceID); found &&
				svc.Spec.Mode.Global == nil && svc.Spec.TaskTemplate.Placement != nil { // else the orchestrator does it
				if parsed, err := object.ParseConstraints(svc.Spec.TaskTemplate.Placement.Constraints); err == nil {
					cs = parsed
				}
			}
			constraints[t.ServiceID] = cs
		}
		if wanted && (!free.Fits(&reserved) || !object.Match(cs, n)) {
			out = append(out, t)
			continue
		}
		free.Take(&reserved, 1)
	}
	return out
}

// moving reports whether a task of the service is on its way to run.
func moving(snap *store.Snapshot, service string, now time.Time) bool {
	for t := range snap.Tasks.By(store.ByService, service) {
		if object.Rank(t.DesiredState) <= object.Rank(swarm.TaskStateRunning) && t.Status.State != swarm.TaskStateRunning &&
			now.Sub(t.CreatedAt) < patience {
			return true
		}
	}
	return false
}
