package roles

import (
	"maps"
	"slices"
	"time"

	"skep/store/replica"
)

// vote brings the votes to those who are to have them: as many as possible, but
// an odd number. An even number of voters survives no more failures than one
// less, and with two both must live. Those who vote and answer keep their votes;
// then come others that follow closely; one that is dead keeps its vote only if
// there is nobody else.
func (v View) vote() Step {
	var alive, ready, lost []replica.Server
	leaving := false
	for _, s := range v.sorted() {
		switch {
		case v.leaving(s) != "":
			leaving = leaving || s.Voter
		case s.Voter && v.silence(s) > dead:
			lost = append(lost, s)
		case s.Voter && s.NodeID == v.Self:
			alive = slices.Insert(alive, 0, s)
		case s.Voter:
			alive = append(alive, s)
		case v.steady(s):
			ready = append(ready, s)
		}
	}
	all := slices.Concat(alive, ready, lost)
	if len(all) == 0 {
		return Step{}
	}
	votes := all[:(len(all)-1)/2*2+1]
	for _, s := range votes {
		if !s.Voter && v.quorum(func(o replica.Server) bool { return o.Voter || o.ID == s.ID }) {
			return Step{Promote, s.ID, s.NodeID, "the node follows closely"}
		}
	}
	// No vote is taken to make way for one that has to go.
	if leaving || slices.ContainsFunc(votes, func(s replica.Server) bool { return !s.Voter }) {
		return Step{}
	}
	for _, s := range slices.Backward(all[len(votes):]) {
		if s.Voter && v.quorum(func(o replica.Server) bool { return o.Voter && o.ID != s.ID }) {
			return Step{Demote, s.ID, s.NodeID, "an odd number of managers is to vote"}
		}
	}
	return Step{}
}

// steady reports whether a member has followed closely for long enough.
func (v View) steady(s replica.Server) bool {
	since, ok := v.Close[s.ID]
	return ok && v.Now.Sub(since) >= steady
}

// follow is since when members follow closely, by their Raft IDs.
func follow(before map[string]time.Time, v View) map[string]time.Time {
	now := map[string]time.Time{}
	for _, s := range v.Servers {
		if s.Voter || v.Contacts[s.NodeID].Behind > near || !v.answers(s) {
			continue
		}
		now[s.ID] = v.Now
	}
	for id := range maps.Keys(now) {
		if since, ok := before[id]; ok {
			now[id] = since
		}
	}
	return now
}
