package ca

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/pki"
	"skep/pki/join"
	"skep/store"
	"skep/store/object"
)

// A change of root goes through these states, all in the store. Each step is
// one command, on the condition that the swarm's object is what the step was
// decided on: whoever leads can take the next, and taking one twice changes
// nothing.
//
//	idle ──begin──► trust ──issue──► issue ──finish──► idle
//	         ▲        │                │
//	         └────────┴─────begin──────┘   another root, or back to the old one
//
// begin makes the new root, or takes the given one, and signs its key with the
// old root, always the one that was there before any change. In trust, nodes
// learn the new root. In issue, new certificates are of the new root and the
// nodes are asked to get theirs, a few at a time. finish makes the new root the
// only one; the old one still lets nodes enrol again for a while.
const (
	// trustGrace and issueGrace are how long nodes that are there may take to
	// follow; those that are not are not waited for.
	trustGrace = 5 * time.Minute
	issueGrace = 10 * time.Minute
	// retirement is how long a former root lets nodes enrol again.
	retirement = 30 * 24 * time.Hour
)

// action is a step of the change of root.
type action string

const (
	none   action = ""
	begin  action = "begin"
	issue  action = "issue"
	ask    action = "ask"
	finish action = "finish"
	forget action = "forget" // retired roots
)

// step is what to do now, and when to look again if nothing changes.
type step struct {
	do    action
	nodes []*object.Node // to ask, or (issue, finish) who did not follow
	next  time.Time
}

// rhythm is how many nodes are asked at a time, and how long until the next.
type rhythm struct {
	batch int
	pause time.Duration
}

// plan is the next step.
func plan(snap *store.Snapshot, now time.Time, r rhythm) step {
	c := snap.Cluster()
	if c == nil {
		return step{}
	}
	if c.RootDue() {
		return step{do: begin}
	}
	rot := c.RootCA.Rotation
	if rot == nil {
		return planRetired(c.RootCA.Retired, now)
	}
	deadline := time.Unix(0, rot.Deadline)
	late := !now.Before(deadline)
	if rot.Phase == object.RotationTrust {
		behind := missing(snap, func(n *object.Node) bool { return trusts(n, rot.Cert) })
		if len(behind) == 0 || late {
			return step{do: issue, nodes: behind}
		}
		return step{next: deadline}
	}
	key := publicKey(rot.Cert)
	behind := missing(snap, func(n *object.Node) bool {
		return bytes.Equal(n.Description.TLSInfo.CertIssuerPublicKey, key)
	})
	if len(behind) == 0 || late {
		return step{do: finish, nodes: behind}
	}
	var due []*object.Node
	for _, n := range behind {
		if n.Renew < rot.Renew && n.Generation < rot.Renew && len(due) < r.batch {
			due = append(due, n)
		}
	}
	if len(due) == 0 {
		return step{next: deadline}
	}
	if turn := time.Unix(0, rot.Asked).Add(r.pause); rot.Asked != 0 && now.Before(turn) {
		return step{next: turn}
	}
	return step{do: ask, nodes: due}
}

func planRetired(retired []object.RetiredRoot, now time.Time) step {
	var s step
	for _, old := range retired {
		until := time.Unix(0, old.Until)
		if !now.Before(until) {
			return step{do: forget}
		}
		if s.next.IsZero() || until.Before(s.next) {
			s.next = until
		}
	}
	return s
}

// missing are the nodes that are there and of which ok does not hold.
func missing(snap *store.Snapshot, ok func(*object.Node) bool) []*object.Node {
	var list []*object.Node
	for n := range snap.Nodes.All() {
		if reachable(n) && !ok(n) {
			list = append(list, n)
		}
	}
	return list
}

// reachable tells whether a node can be expected to follow. Those of which a
// new leader knows nothing yet are, if they ever were there.
func reachable(n *object.Node) bool {
	switch n.Status.State {
	case swarm.NodeStateReady:
		return true
	case swarm.NodeStateUnknown:
		return n.Description.TLSInfo.TrustRoot != ""
	default:
		return false
	}
}

func trusts(n *object.Node, root []byte) bool {
	return strings.Contains(n.Description.TLSInfo.TrustRoot, strings.TrimSpace(string(root)))
}

// publicKey is the key of a root as it stands in certificates.
func publicKey(root []byte) []byte {
	certs, err := pki.ParseChain(root)
	if err != nil {
		return nil
	}
	return certs[0].RawSubjectPublicKeyInfo
}

// apply writes a step that needs nothing from outside into tx.
func apply(tx *store.Tx, s step, now time.Time, r rhythm) error {
	c := tx.Base().Cluster().Clone().(*object.Cluster)
	rot := c.RootCA.Rotation
	switch s.do {
	case issue:
		rot.Phase, rot.Renew = object.RotationIssue, tx.Base().Index+1
		rounds := tx.Base().Nodes.Len()/r.batch + 1
		rot.Deadline = now.Add(issueGrace + time.Duration(rounds)*r.pause).UnixNano()
	case ask:
		rot.Asked = now.UnixNano()
		for _, n := range s.nodes {
			n = n.Clone().(*object.Node)
			n.Renew = rot.Renew
			tx.Update(n)
		}
	case finish:
		if err := succeed(c, now); err != nil {
			return err
		}
	case forget:
		c.RootCA.Retired = retain(c.RootCA.Retired, now)
	default:
		return fmt.Errorf("no step of a change of root: %q", s.do)
	}
	tx.Update(c)
	return nil
}

// succeed makes the new root the only one.
func succeed(c *object.Cluster, now time.Time) error {
	r, rot := &c.RootCA, c.RootCA.Rotation
	r.Rotation, r.Key = nil, rot.Key
	r.Retired = retain(r.Retired, now)
	if bytes.Equal(r.Cert, rot.Cert) {
		return nil // back to where it began: tokens and all are good
	}
	certs, err := pki.ParseChain(rot.Cert)
	if err != nil {
		return fmt.Errorf("read new root: %w", err)
	}
	kept := []object.RetiredRoot{{Cert: r.Cert, Cross: rot.Cross, Until: now.Add(retirement).UnixNano()}}
	for _, old := range r.Retired {
		if !bytes.Equal(old.Cert, rot.Cert) {
			kept = append(kept, old)
		}
	}
	r.Retired, r.Cert = kept, rot.Cert
	c.JoinTokens.Worker, c.JoinTokens.Manager = join.Pair(certs[0].Raw)
	return nil
}

func retain(retired []object.RetiredRoot, now time.Time) []object.RetiredRoot {
	var kept []object.RetiredRoot
	for _, old := range retired {
		if now.UnixNano() < old.Until {
			kept = append(kept, old)
		}
	}
	return kept
}
