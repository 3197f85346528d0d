package object

import (
	"errors"
	"fmt"
)

// Errorf is an error of a kind (of containerd/errdefs) that reads exactly as
// the format says: the text is the user's, the kind is for errors.Is.
func Errorf(kind error, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

type kindError struct{ kind, err error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// ExitError says that a task's container ended, and not well.
type ExitError struct {
	Code int
	// Cause is why, if more is known than the code.
	Cause error
}

func (e *ExitError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("task: non-zero exit (%d)", e.Code)
	}
	return fmt.Sprintf("task: non-zero exit (%d): %v", e.Code, e.Cause)
}

func (e *ExitError) Unwrap() error { return e.Cause }

// ErrTemporary marks an error of a task's runtime that may pass: the agent
// tries again instead of giving the task up.
var ErrTemporary = errors.New("temporary error")

// ErrUnfit marks an error of a task's runtime that says that this node cannot
// run the task, however often it tries: the agent rejects it.
var ErrUnfit = errors.New("this node cannot run it")
