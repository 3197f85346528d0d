// Package reaper deletes tasks that nobody needs any more, and the revisions
// that only they referred to.
//
// Of each slot (each node, for a global service) it keeps the last few tasks
// that ended: as many as the cluster's history limit says or, where the restart
// policy counts attempts, as many as that count needs. It never deletes a task
// that may still run, nor the last one of a slot that has no other: that one
// says why there is none.
//
// Beside tasks it deletes what else is left over: networks that were removed
// while tasks were still on them, and guests whose node is no more.
package reaper

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/loop"
	"skep/appliance/manager/restart"
	"skep/store"
	"skep/store/object"
)

const defaultLimit = 5

// Run reaps until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error {
	services := loop.Each(loop.Services, Plan)
	return loop.Follow(ctx, s, func(prev *store.Snapshot, ch store.Changes, now time.Time) (loop.Changes, time.Time) {
		c, next := services(prev, ch, now)
		networks, _ := PlanNetworks(prev, ch, now)
		c.Add(networks)
		return c, next
	})
}

type place struct {
	slot int
	node string
}

// Plan decides which tasks and revisions of a service go.
func Plan(snap *store.Snapshot, id string, _ time.Time) (loop.Changes, time.Time) {
	var c loop.Changes
	svc, exists := snap.Services.Get(id)
	ended := map[place][]*object.Task{}
	kept := map[place]bool{} // slots that have a task which is no history
	left := map[swarm.Version]bool{}
	for t := range snap.Tasks.By(store.ByService, id) {
		p := place{slot: t.Slot}
		if t.Slot == 0 {
			p.node = t.NodeID
		}
		switch over := object.Over(t); {
		case over && t.DesiredState == swarm.TaskStateRemove:
			c.Delete = append(c.Delete, t)
			continue
		case over && object.Rank(t.DesiredState) > object.Rank(swarm.TaskStateRunning):
			ended[p] = append(ended[p], t)
		default:
			kept[p] = true
		}
		left[t.SpecVersion] = true
	}
	if exists {
		limit := historyLimit(snap, svc)
		for p, tasks := range ended {
			n := limit
			if n == 0 && !kept[p] {
				n = 1
			}
			c.Delete = append(c.Delete, oldest(tasks, n)...)
		}
		slices.SortFunc(c.Delete, func(a, b object.Object) int { return cmp.Compare(a.Key(), b.Key()) })
	}
	for rev := range snap.Revisions.By(store.ByService, id) {
		if !left[rev.SpecVersion] && (!exists || rev.SpecVersion != svc.SpecVersion) {
			c.Delete = append(c.Delete, rev)
		}
	}
	return c, time.Time{}
}

// historyLimit is how many tasks of a slot are kept; negative is all.
func historyLimit(snap *store.Snapshot, svc *object.Service) int {
	if n := restart.MaxAttempts(svc.Spec.TaskTemplate.RestartPolicy); n > 0 {
		return int(min(n, 1<<30)) + 1
	}
	if c := snap.Cluster(); c != nil && c.Spec.Orchestration.TaskHistoryRetentionLimit != nil {
		return int(max(-1, min(*c.Spec.Orchestration.TaskHistoryRetentionLimit, 1<<30)))
	}
	return defaultLimit
}

// oldest are the tasks that are too many.
func oldest(tasks []*object.Task, limit int) (out []object.Object) {
	if limit < 0 || len(tasks) <= limit {
		return nil
	}
	slices.SortFunc(tasks, func(a, b *object.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), a.Status.Timestamp.Compare(b.Status.Timestamp), cmp.Compare(a.ID, b.ID))
	})
	for _, t := range tasks[:len(tasks)-limit] {
		out = append(out, t)
	}
	return out
}
