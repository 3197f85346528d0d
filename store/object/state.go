package object

import "github.com/moby/moby/api/types/swarm"

// Rank orders the states of a task: a task's state and its desired state only
// ever move to a higher rank. An unknown state ranks below all.
//
//	manager:  new → pending → assigned
//	agent:    → accepted → preparing → ready → starting → running
//	ends:     complete, shutdown, failed, rejected, (desired only) remove, orphaned
func Rank(s swarm.TaskState) int {
	switch s {
	case swarm.TaskStateNew:
		return 0
	case swarm.TaskStatePending:
		return 64
	case swarm.TaskStateAllocated: // in the API's list, never used
		return 128
	case swarm.TaskStateAssigned:
		return 192
	case swarm.TaskStateAccepted:
		return 256
	case swarm.TaskStatePreparing:
		return 320
	case swarm.TaskStateReady:
		return 384
	case swarm.TaskStateStarting:
		return 448
	case swarm.TaskStateRunning:
		return 512
	case swarm.TaskStateComplete:
		return 576
	case swarm.TaskStateShutdown:
		return 640
	case swarm.TaskStateFailed:
		return 704
	case swarm.TaskStateRejected:
		return 768
	case swarm.TaskStateRemove:
		return 800
	case swarm.TaskStateOrphaned:
		return 832
	default:
		return -1
	}
}

// Ended reports whether a task in this state runs no more and never will.
func Ended(s swarm.TaskState) bool { return Rank(s) > Rank(swarm.TaskStateRunning) }

// State is s, as the string that all tasks in that state share.
func State(s swarm.TaskState) swarm.TaskState {
	for _, known := range [...]swarm.TaskState{
		swarm.TaskStateRunning, swarm.TaskStateShutdown, swarm.TaskStateNew, swarm.TaskStatePending,
		swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady,
		swarm.TaskStateStarting, swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateRejected,
		swarm.TaskStateRemove, swarm.TaskStateOrphaned,
	} {
		if s == known {
			return known
		}
	}
	return s
}

// Over reports whether a task runs nowhere and never will: its node said so, or
// never heard of it.
func Over(t *Task) bool {
	return Ended(t.Status.State) ||
		(Rank(t.Status.State) < Rank(swarm.TaskStateAssigned) && Rank(t.DesiredState) > Rank(swarm.TaskStateRunning))
}
