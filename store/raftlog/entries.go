package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// at is the domain of an entry.
func (l *Log) at(index uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte(l.domain), index))
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.bounds.empty() {
		return 0, l.health.check()
	}
	return l.bounds.First, l.health.check()
}

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.bounds.empty() {
		return 0, l.health.check()
	}
	return l.bounds.Last, l.health.check()
}

// IsMonotonic implements raft.MonotonicLogStore: the log has no gaps.
func (l *Log) IsMonotonic() bool { return true }

// GetLog implements raft.LogStore.
func (l *Log) GetLog(index uint64, log *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if index < l.bounds.First || index > l.bounds.Last {
		return raft.ErrLogNotFound
	}
	return l.health.run("read log entry", func() error {
		plain, err := l.open(index)
		if err != nil {
			return err
		}
		log.Index = index
		return decodeEntry(plain, log)
	})
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. The entries are the caller's and stay as
// they are.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health.run("store log entries", func() error {
		b := l.bounds
		if b.empty() {
			b = bounds{logs[0].Index, logs[0].Index - 1}
		}
		sealed := make([]*raft.Log, 0, len(logs)+1)
		for _, log := range logs {
			if log.Index != b.Last+1 {
				return fmt.Errorf("entry %d follows entry %d", log.Index, b.Last)
			}
			b.Last = log.Index
			sealed = append(sealed, l.seal(log.Index, encodeEntry(log)))
		}
		head, err := l.sealedBounds(b)
		if err != nil {
			return err
		}
		if err := l.inner.StoreLogs(append(sealed, head)); err != nil {
			return err
		}
		l.bounds = b
		return nil
	})
}

// DeleteRange implements raft.LogStore: it takes away a beginning, an end, or all.
func (l *Log) DeleteRange(first, last uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bounds
	if b.empty() || last < b.First || first > b.Last || last < first {
		return nil
	}
	return l.health.run("delete log entries", func() error {
		switch {
		case first <= b.First:
			b.First = last + 1
		case last >= b.Last:
			b.Last = first - 1
		default:
			return fmt.Errorf("entries %d to %d are amidst %d to %d", first, last, b.First, b.Last)
		}
		return l.shrink(b)
	})
}

// shrink stores the new bounds before it deletes what is outside of them: what
// a crash leaves over does not count, and is deleted at the next opening.
func (l *Log) shrink(b bounds) error {
	head, err := l.sealedBounds(b)
	if err != nil {
		return err
	}
	if err := l.inner.StoreLog(head); err != nil {
		return err
	}
	l.bounds = b
	return l.sweep()
}

// sweep deletes the entries that do not count. They are a stretch right before
// those that do, or right behind.
func (l *Log) sweep() error {
	first, err := l.inner.FirstIndex()
	if err != nil {
		return err
	}
	if first < l.bounds.First {
		if err := l.inner.DeleteRange(first, l.bounds.First-1); err != nil {
			return err
		}
	}
	next := max(l.bounds.Last+1, l.bounds.First)
	switch err := l.inner.GetLog(next, new(raft.Log)); {
	case err == nil:
		return l.inner.DeleteRange(next, boundsIndex-1)
	case errors.Is(err, raft.ErrLogNotFound):
		return nil
	default:
		return err
	}
}

// load reads all that is there, and decides what counts. Entries that are
// damaged but that the newest snapshot covers are given up.
func (l *Log) load(snapshot uint64) error {
	if err := l.loadStable(); err != nil {
		return err
	}
	plain, err := l.open(boundsIndex)
	if errors.Is(err, raft.ErrLogNotFound) {
		return l.loadNone(snapshot)
	}
	if err != nil {
		return err
	}
	if err := decode(plain, &l.bounds); err != nil {
		return err
	}
	var bad uint64
	for i := l.bounds.First; i <= l.bounds.Last; i++ {
		plain, err := l.open(i)
		if err == nil {
			err = decodeEntry(plain, new(raft.Log))
		}
		switch {
		case err == nil:
		case i <= snapshot:
			bad = i
		case errors.Is(err, raft.ErrLogNotFound):
			return fmt.Errorf("%w: entry %d is missing", ErrDamaged, i)
		default:
			return err
		}
	}
	if l.bounds.First > snapshot+1 || max(snapshot, l.bounds.Last) < l.noted(notedKey) {
		return fmt.Errorf("%w: it holds %d to %d and the newest whole snapshot is of %d", ErrDamaged, l.bounds.First, l.bounds.Last, snapshot)
	}
	if bad > 0 {
		l.cfg.Logger.Warn("gave up damaged log entries that a snapshot covers", "index", bad)
		return l.shrink(bounds{bad + 1, max(l.bounds.Last, bad)})
	}
	return l.sweep()
}

// loadNone makes sure that a log without bounds is new.
func (l *Log) loadNone(snapshot uint64) error {
	first, err := l.inner.FirstIndex()
	if err != nil {
		return err
	}
	if first != 0 || snapshot < l.noted(notedKey) || snapshot > 0 && len(l.stable) == 0 {
		return fmt.Errorf("%w: it is missing, or its bounds are", ErrDamaged)
	}
	l.bounds = bounds{First: 1}
	return nil
}

// encodeEntry is all of an entry but its index, which it is sealed for.
func encodeEntry(log *raft.Log) []byte {
	b := make([]byte, 0, 1+8+8+4+len(log.Extensions)+len(log.Data))
	b = append(b, byte(log.Type))
	b = binary.BigEndian.AppendUint64(b, log.Term)
	var at int64
	if !log.AppendedAt.IsZero() {
		at = log.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(log.Extensions)))
	b = append(b, log.Extensions...)
	return append(b, log.Data...)
}

func decodeEntry(b []byte, log *raft.Log) error {
	const fixed = 1 + 8 + 8 + 4
	if len(b) < fixed {
		return fmt.Errorf("%w: an entry of %d bytes", ErrDamaged, len(b))
	}
	log.Type = raft.LogType(b[0])
	log.Term = binary.BigEndian.Uint64(b[1:])
	log.AppendedAt = time.Time{}
	if at := int64(binary.BigEndian.Uint64(b[9:])); at != 0 {
		log.AppendedAt = time.Unix(0, at)
	}
	n := int(binary.BigEndian.Uint32(b[17:]))
	if n > len(b)-fixed {
		return fmt.Errorf("%w: an entry of %d bytes with an extension of %d", ErrDamaged, len(b), n)
	}
	log.Extensions, log.Data = nil, nil
	if n > 0 {
		log.Extensions = b[fixed : fixed+n : fixed+n]
	}
	if len(b) > fixed+n {
		log.Data = b[fixed+n:]
	}
	return nil
}
