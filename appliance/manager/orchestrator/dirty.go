package orchestrator

import (
	"bytes"
	"encoding/json"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// likeness says how a revision compares with what the service runs now.
type likeness int

const (
	differs  likeness = iota
	equal             // but for its number
	replaced          // but for its placement
)

// dirty reports whether a task has to be replaced for the service's spec: it is
// of another revision, and not for its number, its credentials or a placement
// that its node satisfies all the same.
func (r *round) dirty(t *object.Task) bool {
	if t.SpecVersion == r.svc.SpecVersion {
		return false
	}
	like, ok := r.same[t.SpecVersion.Index]
	if !ok {
		like = r.compare(t)
		r.same[t.SpecVersion.Index] = like
	}
	switch like {
	case equal:
		return false
	case replaced:
		n, ok := r.snap.Nodes.Get(t.NodeID)
		return !ok || !r.placeable(n)
	default:
		return true
	}
}

func (r *round) compare(t *object.Task) likeness {
	rev, ok := r.snap.Revisions.Get(object.RevisionKey(t.ServiceID, t.SpecVersion))
	if !ok {
		return differs
	}
	was := object.WithDefaults(swarm.ServiceSpec{TaskTemplate: rev.Spec, EndpointSpec: rev.Endpoint})
	is := object.WithDefaults(swarm.ServiceSpec{TaskTemplate: r.svc.Spec.TaskTemplate, EndpointSpec: r.svc.Spec.EndpointSpec})
	if same(was, is) {
		return equal
	}
	was.TaskTemplate.Placement, is.TaskTemplate.Placement = nil, nil
	if same(was, is) {
		return replaced
	}
	return differs
}

// same compares as the API shows them: there is no difference between what is
// empty and what is not there.
func same(a, b swarm.ServiceSpec) bool {
	ja, err := json.Marshal(a)
	if err != nil {
		return false
	}
	jb, err := json.Marshal(b)
	return err == nil && bytes.Equal(ja, jb)
}
