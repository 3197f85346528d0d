package roles

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

const (
	// silent is how long a replica may say nothing and still be reachable.
	silent = 5 * time.Second
	// dead is after how long another takes the vote of one that says nothing.
	dead = 30 * time.Second
	// near is how few entries a replica lacks that follows closely, and steady
	// how long it has to, before it may vote.
	near   = 64
	steady = 2 * time.Second
)

// Why a member is taken out.
const (
	removed = "the node was removed"
	anew    = "the node has begun anew"
	demoted = "the node was demoted"
)

// View is all that a decision is made from.
type View struct {
	Self     string // the node of the leader
	Snapshot *store.Snapshot
	Servers  []replica.Server
	Contacts map[string]replica.Contact // by node
	// Close holds since when a member follows closely, by its Raft ID.
	Close      map[string]time.Time
	Generation func(node string) (generation uint64, ok bool)
	Began      time.Time // of this leadership
	Now        time.Time
}

// Action is what a step does.
type Action string

// The actions. Blocked does nothing, and says why.
const (
	Rest     Action = ""
	Blocked  Action = "blocked"
	Add      Action = "add"
	Promote  Action = "promote"
	Demote   Action = "demote"
	Remove   Action = "remove"
	Transfer Action = "transfer"
)

// Step is one change of the group.
type Step struct {
	Do         Action
	ID, NodeID string
	Why        string
}

// Plan is the next step. Who has to go goes first, then votes are given and
// taken, then new members let in.
func Plan(v View) Step {
	blocked := Step{}
	for _, s := range v.sorted() {
		why := v.leaving(s)
		if why == "" {
			continue
		}
		step := v.takeOut(s, why)
		if step.Do != Blocked {
			return step
		}
		blocked = step
	}
	if s := v.vote(); s.Do != Rest {
		return s
	}
	for n := range v.Snapshot.Nodes.All() {
		if v.wanted(n) && n.Status.State == swarm.NodeStateReady && !v.in(n.ID) {
			return Step{Add, n.RaftID, n.ID, "the node is to be a manager"}
		}
	}
	if s := v.handOver(); s.Do != Rest {
		return s
	}
	return blocked
}

// wanted reports whether a node is to be a replica and can be one.
func (v View) wanted(n *object.Node) bool {
	return n.Spec.Role == swarm.NodeRoleManager && n.CertRole == swarm.NodeRoleManager && n.RaftID != "" &&
		n.ManagerStatus != nil && n.ManagerStatus.Addr != ""
}

func waiting(v View) bool {
	for n := range v.Snapshot.Nodes.All() {
		if v.wanted(n) && !v.in(n.ID) {
			return true
		}
	}
	return false
}

func (v View) in(node string) bool {
	return slices.ContainsFunc(v.Servers, func(s replica.Server) bool { return s.NodeID == node })
}

func (v View) sorted() []replica.Server {
	return slices.SortedFunc(slices.Values(v.Servers), func(a, b replica.Server) int {
		return cmp.Or(cmp.Compare(a.NodeID, b.NodeID), cmp.Compare(a.ID, b.ID))
	})
}

// leaving is why a member is to be taken out, "" if it stays.
func (v View) leaving(s replica.Server) string {
	n, ok := v.Snapshot.Nodes.Get(s.NodeID)
	switch {
	case !ok:
		return removed
	case n.RaftID != "" && n.RaftID != s.ID:
		return anew
	case n.Spec.Role != swarm.NodeRoleManager:
		return demoted
	default:
		return ""
	}
}

// takeOut is the next step on a member's way out.
func (v View) takeOut(s replica.Server, why string) Step {
	switch {
	case !s.Voter:
		return Step{Remove, s.ID, s.NodeID, why}
	case s.NodeID == v.Self:
		if to, ok := v.heir(func(*object.Node) bool { return true }); ok {
			return Step{Transfer, to.ID, to.NodeID, why}
		}
		return Step{Blocked, s.ID, s.NodeID, why + ", but no other manager can lead"}
	case !v.quorum(func(o replica.Server) bool { return o.Voter && o.ID != s.ID }):
		return Step{Blocked, s.ID, s.NodeID, why + ", but without it too few managers could be reached: start one that is down, or promote another"}
	default:
		return Step{Demote, s.ID, s.NodeID, why}
	}
}

// handOver lets another lead when the leader's node is drained.
func (v View) handOver() Step {
	n, ok := v.Snapshot.Nodes.Get(v.Self)
	if !ok || n.Spec.Availability != swarm.NodeAvailabilityDrain {
		return Step{}
	}
	to, ok := v.heir(func(n *object.Node) bool { return n.Spec.Availability != swarm.NodeAvailabilityDrain })
	if !ok {
		return Step{}
	}
	return Step{Transfer, to.ID, to.NodeID, "the leader's node is drained"}
}

// heir is the voter that can lead next: one that stays, is reachable, and
// follows most closely.
func (v View) heir(suits func(*object.Node) bool) (best replica.Server, ok bool) {
	for _, s := range v.sorted() {
		if !s.Voter || s.NodeID == v.Self || v.leaving(s) != "" || !v.answers(s) {
			continue
		}
		if n, found := v.Snapshot.Nodes.Get(s.NodeID); !found || !suits(n) {
			continue
		}
		if !ok || v.Contacts[s.NodeID].Behind < v.Contacts[best.NodeID].Behind {
			best, ok = s, true
		}
	}
	return best, ok
}

// silence is how long a member has not been heard of.
func (v View) silence(s replica.Server) time.Duration {
	if s.NodeID == v.Self {
		return 0
	}
	last := v.Began
	if c, ok := v.Contacts[s.NodeID]; ok && c.Last.After(last) {
		last = c.Last
	}
	return v.Now.Sub(last)
}

// answers reports whether a member is known to be there: a leader that is new
// knows it of nobody yet.
func (v View) answers(s replica.Server) bool {
	_, ok := v.Contacts[s.NodeID]
	return s.NodeID == v.Self || ok && v.silence(s) <= silent
}

// quorum reports whether those that vote would do so with enough of them
// reachable.
func (v View) quorum(votes func(replica.Server) bool) bool {
	voters, reachable := 0, 0
	for _, s := range v.Servers {
		if !votes(s) {
			continue
		}
		voters++
		if v.answers(s) {
			reachable++
		}
	}
	return voters > 0 && reachable > voters/2
}

// String is the step in words.
func (s Step) String() string {
	if s.Do == Rest {
		return "rest"
	}
	return fmt.Sprintf("%s %s (%s): %s", s.Do, s.NodeID, s.ID, s.Why)
}
