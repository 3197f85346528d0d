package store

import (
	"bytes"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// CreateService adds a service and its first revision. The spec is valid
// (object.ValidateService) and is not kept.
func CreateService(tx *Tx, spec swarm.ServiceSpec, auth *registry.AuthConfig) *object.Service {
	s := new(object.Service)
	s.ID = object.NewID()
	s.Spec = object.Copy(spec)
	s.Auth = auth
	startJob(s, time.Now())
	tx.Create(s)
	tx.Create(revisionOf(s))
	return s
}

// UpdateService replaces a service's spec, whose version is old's, and keeps
// the one before as PreviousSpec. There is a new revision if what its tasks run
// changes, so that a mere scaling leaves them be. Without auth the stored
// credentials stay.
func UpdateService(tx *Tx, old *object.Service, spec swarm.ServiceSpec, auth *registry.AuthConfig) *object.Service {
	s := old.Clone().(*object.Service)
	s.PreviousSpec = &old.Clone().(*object.Service).Spec
	s.PreviousAuth = old.Auth
	s.Spec = object.Copy(spec)
	if auth != nil {
		s.Auth = auth
	}
	s.UpdateStatus = nil
	put(tx, old, s, time.Now())
	return s
}

// RollbackService goes back to a service's previous spec, which must be there.
// By hand, the present spec becomes the previous one; the automatic rollback of
// a failed update leaves none.
func RollbackService(tx *Tx, old *object.Service, automatic bool, message string, now time.Time) *object.Service {
	s := old.Clone().(*object.Service)
	s.Spec, s.Auth = *s.PreviousSpec, old.PreviousAuth
	s.PreviousSpec, s.PreviousAuth = nil, nil
	if !automatic {
		s.PreviousSpec = &old.Clone().(*object.Service).Spec
		s.PreviousAuth = old.Auth
	}
	s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: &now, Message: message}
	put(tx, old, s, now)
	return s
}

func put(tx *Tx, old, s *object.Service, now time.Time) {
	startJob(s, now)
	if !sameRevision(old, s) {
		s.SpecVersion = swarm.Version{}
		tx.Create(revisionOf(s))
	}
	tx.Update(s)
}

// startJob makes every change of a job run it once more.
func startJob(s *object.Service, now time.Time) {
	if s.Spec.Mode.ReplicatedJob == nil && s.Spec.Mode.GlobalJob == nil {
		s.JobStatus = nil
		return
	}
	next := swarm.JobStatus{LastExecution: now}
	if s.JobStatus != nil {
		next.JobIteration.Index = s.JobStatus.JobIteration.Index + 1
	}
	s.JobStatus = &next
}

// revisionOf is what the tasks of a service run, without its version.
func revisionOf(s *object.Service) *object.Revision {
	return &object.Revision{
		ServiceID: s.ID,
		Service:   s.Spec.Annotations,
		Spec:      s.Spec.TaskTemplate,
		Endpoint:  s.Spec.EndpointSpec,
		Auth:      s.Auth,
	}
}

// sameRevision compares encodings, which do not tell nil from empty.
func sameRevision(a, b *object.Service) bool {
	var enc [2][]byte
	for i, s := range []*object.Service{a, b} {
		var err error
		if enc[i], err = object.Encode(revisionOf(s)); err != nil {
			panic(fmt.Sprintf("encode revision of %s: %v", s.ID, err)) // of types that always encode
		}
	}
	return bytes.Equal(enc[0], enc[1])
}
