// Package orchestrator keeps the tasks of services as their specs want them:
// it makes tasks for slots and nodes that lack one, replaces those that ended,
// changes those of an older revision, and lets go of those that are too many.
//
// It decides for one service at a time, from the store alone. It asks package
// restart whether and when a task is replaced and package updater which slots
// are changed next. It does not choose nodes (the scheduler does) and deletes
// no task (the reaper does). Jobs are not built.
package orchestrator

import (
	"context"

	"skep/appliance/manager/loop"
	"skep/store"
)

// Run keeps all services until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error {
	return loop.Follow(ctx, s, loop.Each(loop.Services, Plan))
}
