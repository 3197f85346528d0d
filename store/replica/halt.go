package replica

import (
	"errors"

	"github.com/hashicorp/raft"
)

// Raft panics if it cannot read an entry or write its vote. For a running
// member that would be the end of the process without a word to the user: so
// the failure goes to Run, and Raft waits for an end that Run brings about.

func (m *Member) halt(err error) error {
	if err == nil || errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	m.fail(err)
	select {
	case <-m.started:
		select {}
	default:
		return err // not running yet
	}
}

type haltingLog struct {
	raft.LogStore
	m *Member
}

func (l *haltingLog) GetLog(index uint64, log *raft.Log) error {
	return l.m.halt(l.LogStore.GetLog(index, log))
}

// StoreLogs has its error returned: Raft steps down over it.
func (l *haltingLog) StoreLogs(logs []*raft.Log) error {
	err := l.LogStore.StoreLogs(logs)
	if err != nil {
		l.m.fail(err)
	}
	return err
}

func (l *haltingLog) IsMonotonic() bool {
	s, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && s.IsMonotonic()
}

type haltingStable struct {
	raft.StableStore
	m *Member
}

func (s *haltingStable) Set(key, value []byte) error {
	return s.m.halt(s.StableStore.Set(key, value))
}

func (s *haltingStable) SetUint64(key []byte, value uint64) error {
	return s.m.halt(s.StableStore.SetUint64(key, value))
}
