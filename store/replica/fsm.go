package replica

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"skep/store"
)

// fsm hands Raft's entries to the store. Raft calls it from one goroutine.
type fsm struct {
	member *Member
	broken error // after it nothing is applied
}

// Apply is nil, or the error for whoever proposed the entry.
func (f *fsm) Apply(l *raft.Log) any {
	if f.broken != nil {
		return f.broken
	}
	err := f.member.Apply(l.Index, l.Data)
	if fatal, ok := errors.AsType[*store.FatalError](err); ok {
		f.broken = fatal
		f.member.fail(fmt.Errorf("entry %d: %w", l.Index, fatal))
	}
	if err == nil { // not an interface that holds nil
		return nil
	}
	return err
}

// Snapshot costs nothing: it keeps the present state, which never changes.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	return saved{f.member.Snapshot()}, nil
}

func (f *fsm) Restore(r io.ReadCloser) error {
	if err := errors.Join(f.member.Restore(r), r.Close()); err != nil {
		f.broken = err
		f.member.fail(err)
		return err
	}
	return nil
}

type saved struct{ *store.Snapshot }

func (s saved) Persist(sink raft.SnapshotSink) error {
	if err := s.Save(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (saved) Release() {}
