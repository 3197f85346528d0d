// Package scheduler assigns pending tasks to nodes.
//
// A node is fit if it passes every filter; among those that are fit, the one
// with the fewest tasks of the service wins, after failures and placement
// preferences are heard. A task that fits nowhere stays pending, and says why.
//
// It promises that no node is given more than it has, that no node gets a task
// it is not fit for, and that nothing is decided twice. It does not move tasks
// that run, and it counts failures in memory only.
package scheduler

import (
	"context"

	"skep/appliance/manager/loop"
	"skep/store"
)

// Run schedules until ctx ends or the store fails.
func Run(ctx context.Context, s store.Proposer) error {
	return loop.Follow(ctx, s, new(Scheduler).Plan)
}
