// Package restart decides whether and when a task that ended is replaced, and
// when its replacement may start.
//
// It keeps no history: what was tried is read from the tasks in the store,
// which the reaper keeps for as long as they count. So a new leader decides
// exactly as the old one would have.
package restart

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// DefaultDelay is the delay of a policy that says nothing about it.
const DefaultDelay = 5 * time.Second

// patience is how long a replacement waits for the task before it to stop.
const patience = time.Minute

// Condition is the policy's condition, or the default.
func Condition(p *swarm.RestartPolicy) swarm.RestartPolicyCondition {
	if p == nil || p.Condition == "" {
		return swarm.RestartPolicyConditionAny
	}
	return p.Condition
}

// Delay is the policy's delay, or the default.
func Delay(p *swarm.RestartPolicy) time.Duration {
	if p == nil || p.Delay == nil {
		return DefaultDelay
	}
	return *p.Delay
}

// MaxAttempts is the number of replacements that the policy allows; 0 is any.
func MaxAttempts(p *swarm.RestartPolicy) uint64 {
	if p == nil || p.MaxAttempts == nil {
		return 0
	}
	return *p.MaxAttempts
}

// Died reports whether a task ended by itself.
func Died(t *object.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateRejected:
		return true
	default:
		return false
	}
}

// Allowed reports whether the policy lets the task dead be replaced. tried are
// the tasks of its slot that ran the same revision, dead among them: all but
// the first are attempts.
func Allowed(p *swarm.RestartPolicy, dead *object.Task, tried []*object.Task) bool {
	switch Condition(p) {
	case swarm.RestartPolicyConditionNone:
		return false
	case swarm.RestartPolicyConditionOnFailure:
		if dead.Status.State == swarm.TaskStateComplete {
			return false
		}
	case swarm.RestartPolicyConditionAny:
	default:
	}
	limit := MaxAttempts(p)
	if limit == 0 || !Died(dead) {
		return true
	}
	var first *object.Task
	for _, t := range tried {
		if first == nil || t.CreatedAt.Before(first.CreatedAt) {
			first = t
		}
	}
	attempts := uint64(0)
	for _, t := range tried {
		if t != first && counts(p, t, dead) {
			attempts++
		}
	}
	return attempts < limit
}

// counts reports whether an attempt falls in the policy's window, which ends
// when dead died: the answer does not change with time.
func counts(p *swarm.RestartPolicy, attempt, dead *object.Task) bool {
	if p.Window == nil || *p.Window == 0 {
		return true
	}
	died := dead.Status.Timestamp
	if dead.AppliedAt != 0 {
		died = time.Unix(0, dead.AppliedAt)
	}
	return !attempt.CreatedAt.Before(died.Add(-*p.Window))
}

// NotBefore is when the replacement of a task that died may run.
func NotBefore(p *swarm.RestartPolicy, now time.Time) time.Time { return now.Add(Delay(p)) }

// Release reports whether a task that is held at ready may run now. If not,
// next is when time alone may change that, or zero. before are the tasks that
// are to be gone first; lost reports whether a node is down or no more.
func Release(t *object.Task, before []*object.Task, lost func(node string) bool, now time.Time) (ok bool, next time.Time) {
	if from := time.Unix(0, t.NotBefore); from.After(now) {
		return false, from
	}
	for _, b := range before {
		started := object.Rank(b.Status.State) >= object.Rank(swarm.TaskStateAssigned)
		if !started || object.Rank(b.Status.State) > object.Rank(swarm.TaskStateRunning) || lost(b.NodeID) {
			continue
		}
		since := t.CreatedAt
		if t.NotBefore != 0 {
			since = time.Unix(0, t.NotBefore)
		}
		if limit := since.Add(patience); limit.After(now) {
			return false, limit
		}
	}
	return true, time.Time{}
}
