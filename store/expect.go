package store

import (
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// expectation is what a transaction needs of an object that it may not change.
type expectation struct {
	Kind object.Kind `cbor:"kind"`
	ID   string      `cbor:"id"`
	// Version is what the object must be at; 0: nothing may refer to it.
	Version uint64 `cbor:"version,omitempty"`
}

// There makes the transaction depend on o, which it does not change: it must be
// what its Version says when the changes are made. What refers to an object
// depends on it.
func (tx *Tx) There(o object.Object) {
	tx.expect(expectation{o.Kind(), o.Key(), o.Metadata().Version.Index})
}

// Unused makes the transaction, which removes o, depend on that then no service
// and no guest refers to it: a network, a secret or a config.
func (tx *Tx) Unused(o object.Object) { tx.expect(expectation{o.Kind(), o.Key(), 0}) }

func (tx *Tx) expect(e expectation) {
	if !slices.Contains(tx.expects, e) {
		tx.expects = append(tx.expects, e)
	}
}

// check is the [FatalError] of an expectation that this program knows nothing of.
func (e expectation) check() error {
	if object.New(e.Kind) == nil {
		return &FatalError{fmt.Errorf("unknown kind %q", e.Kind)}
	}
	return nil
}

// expected is ErrSequence if an expectation does not hold.
func (d *draft) expected(e expectation) error {
	if err := e.check(); err != nil {
		return err
	}
	o := d.Get(e.Kind, e.ID)
	switch {
	case e.Version == 0 && d.refers(e.Kind, e.ID):
		return ErrSequence
	case e.Version == 0:
		return nil
	case o == nil:
		return &goneError{e.Kind, e.ID}
	case o.Metadata().Version.Index != e.Version:
		return ErrSequence
	}
	return nil
}

// refers reports whether a service or a guest refers to an object.
func (s *Snapshot) refers(kind object.Kind, id string) bool {
	for o := range s.Services.All() {
		if !o.PendingDelete && s.asks(o.Spec, kind, id) {
			return true
		}
	}
	if kind != object.KindNetwork {
		return false
	}
	for g := range s.Guests.All() {
		if g.Network.ID == id {
			return true
		}
	}
	return false
}

// asks reports whether a service of this spec needs an object.
func (s *Snapshot) asks(spec swarm.ServiceSpec, kind object.Kind, id string) bool {
	c := spec.TaskTemplate.ContainerSpec
	switch kind {
	case object.KindNetwork:
		if n, ok := s.Networks.Get(id); ok && n.Spec.Ingress && spec.EndpointSpec != nil && slices.ContainsFunc(spec.EndpointSpec.Ports, object.InMesh) {
			return true
		}
		return slices.ContainsFunc(spec.TaskTemplate.Networks, func(t swarm.NetworkAttachmentConfig) bool { return t.Target == id })
	case object.KindSecret:
		return c != nil && slices.ContainsFunc(c.Secrets, func(r *swarm.SecretReference) bool { return r.SecretID == id })
	case object.KindConfig:
		return c != nil && slices.ContainsFunc(c.Configs, func(r *swarm.ConfigReference) bool { return r.ConfigID == id })
	default:
		return false
	}
}
