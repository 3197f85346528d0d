package replica

import (
	"errors"
	"runtime"

	"github.com/hashicorp/raft"
)

// Raft panics if it cannot read an entry or write its vote. For a running
// member that would be the end of the process without a word to the user: so
// the failure goes to Run, which brings about the end, and the goroutine of Raft
// that met it ends at once: Raft can shut down without it.

func (m *Member) halt(err error) error {
	if err == nil || errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	m.fail(err)
	select {
	case <-m.started:
		runtime.Goexit()
		return nil
	default:
		return err // not running yet
	}
}

type haltingLog struct {
	raft.LogStore
	m *Member
}

// GetLog does not tell Raft that an entry is missing whose storing failed: Raft
// may have cut its log before, has not noted it, and would panic.
func (l *haltingLog) GetLog(index uint64, log *raft.Log) error {
	err := l.LogStore.GetLog(index, log)
	if errors.Is(err, raft.ErrLogNotFound) && l.m.broken.Load() {
		runtime.Goexit()
	}
	return l.m.halt(err)
}

// StoreLogs has its error returned: Raft steps down over it.
func (l *haltingLog) StoreLogs(logs []*raft.Log) error {
	defer l.m.timed("store log entries")()
	err := l.LogStore.StoreLogs(logs)
	if err != nil {
		l.m.broken.Store(true)
		l.m.fail(err)
	}
	return err
}

func (l *haltingLog) DeleteRange(first, last uint64) error {
	defer l.m.timed("delete log entries")()
	return l.LogStore.DeleteRange(first, last)
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
	defer s.m.timed("store vote")()
	return s.m.halt(s.StableStore.Set(key, value))
}

func (s *haltingStable) SetUint64(key []byte, value uint64) error {
	defer s.m.timed("store vote")()
	return s.m.halt(s.StableStore.SetUint64(key, value))
}

// timedSnapshots are there for their writes to be timed.
type timedSnapshots struct {
	raft.SnapshotStore
	m *Member
}

func (s *timedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	defer s.m.timed("create snapshot")()
	k, err := s.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	return &timedSink{k, s.m}, nil
}

type timedSink struct {
	raft.SnapshotSink
	m *Member
}

func (k *timedSink) Write(b []byte) (int, error) {
	defer k.m.timed("write snapshot")()
	return k.SnapshotSink.Write(b)
}

func (k *timedSink) Close() error {
	defer k.m.timed("finish snapshot")()
	return k.SnapshotSink.Close()
}
