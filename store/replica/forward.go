package replica

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"skep/store"
)

// Forwarder asks the leader in a member's name. The leader is a node's ID; there
// [Member.Accept] and [Member.ReadIndex] answer, and the [Answer] brings it back.
//
// An error that is not an answer's must be (in the sense of errors.Is)
// [ErrNotSent] if the leader certainly has not got the request: all others count
// as an unknown outcome.
type Forwarder interface {
	Propose(ctx context.Context, leader string, command []byte) (index uint64, err error)
	ReadIndex(ctx context.Context, leader string) (index uint64, err error)
}

var (
	// ErrNotLeader says that who was asked does not lead, and did nothing.
	ErrNotLeader = errors.New("not the leader")
	// ErrNotSent says that a request did not get to the leader.
	ErrNotSent = errors.New("the leader cannot be reached")
)

// Answer is the result of Accept or ReadIndex in a form that can be sent.
type Answer struct {
	Index uint64 `cbor:"index,omitempty"`
	// Kinds and Text are those of an error; Text is empty if there is none.
	Kinds []string `cbor:"kinds,omitempty"`
	Text  string   `cbor:"text,omitempty"`
}

// NewAnswer is the answer for what was returned.
func NewAnswer(index uint64, err error) Answer {
	if err == nil {
		return Answer{Index: index}
	}
	a := Answer{Text: err.Error()}
	if a.Text == "" {
		a.Text = "unknown error"
	}
	for _, k := range kinds() {
		if errors.Is(err, k.err) {
			a.Kinds = append(a.Kinds, k.name)
		}
	}
	return a
}

// Result is what NewAnswer was given: the error has the same text, and is of the
// same kinds.
func (a Answer) Result() (uint64, error) {
	if a.Text == "" {
		return a.Index, nil
	}
	e := &remoteError{text: a.Text}
	for _, k := range kinds() {
		for _, name := range a.Kinds {
			if name == k.name {
				e.kinds = append(e.kinds, k.err)
			}
		}
	}
	if len(e.kinds) == 0 { // it must not be taken for a refusal
		e.kinds = []error{ErrUnknownOutcome}
	}
	return 0, e
}

type remoteError struct {
	text  string
	kinds []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.kinds }

type kind struct {
	name string
	err  error
}

func kinds() []kind {
	return []kind{
		{"sequence", store.ErrSequence},
		{"unknown outcome", ErrUnknownOutcome},
		{"not leader", ErrNotLeader},
		{"not found", errdefs.ErrNotFound},
		{"already exists", errdefs.ErrAlreadyExists},
		{"conflict", errdefs.ErrConflict},
		{"invalid argument", errdefs.ErrInvalidArgument},
		{"failed precondition", errdefs.ErrFailedPrecondition},
		{"resource exhausted", errdefs.ErrResourceExhausted},
		{"permission denied", errdefs.ErrPermissionDenied},
		{"unauthenticated", errdefs.ErrUnauthenticated},
		{"not implemented", errdefs.ErrNotImplemented},
		{"unavailable", errdefs.ErrUnavailable},
	}
}
