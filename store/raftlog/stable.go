package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"skep/pki/seal"
	"skep/store/object"
)

// The keys of the stable store are sealed together, so that none of them can be
// lost or put back without the others: a forgotten vote would be given twice.

func (l *Log) stableDomain() string {
	return seal.Domain("raft stable", l.cfg.ClusterID, l.cfg.NodeID)
}

func (l *Log) loadStable() error {
	l.stable = map[string][]byte{}
	sealed, err := l.inner.Get([]byte(stableKey))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		last, lastErr := l.inner.LastIndex()
		if lastErr == nil && last != 0 {
			return fmt.Errorf("%w: the vote is missing", ErrDamaged)
		}
		return lastErr
	}
	if err != nil {
		return err
	}
	plain, err := l.cfg.Keyring.Open(l.stableDomain(), sealed)
	if err != nil {
		return fmt.Errorf("%w: vote: %w", ErrDamaged, err)
	}
	if err := decode(plain, &l.stable); err != nil {
		return err
	}
	if f := l.noted(formatKey); f > format {
		return fmt.Errorf("raft log has format %d: %w", f, ErrNewer)
	}
	return nil
}

// noted is a number that was stored by us beside Raft's: notedKey is the index
// of the newest snapshot that ever was.
func (l *Log) noted(key string) uint64 {
	if b := l.stable[key]; len(b) == 8 {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Set implements raft.StableStore.
func (l *Log) Set(key, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health.run("store vote", func() error {
		next := maps.Clone(l.stable)
		next[string(key)] = bytes.Clone(value)
		if err := l.storeStable(next); err != nil {
			return err
		}
		l.stable = next
		return nil
	})
}

// storeStable writes all of the stable store. The caller holds mu.
func (l *Log) storeStable(all map[string][]byte) error {
	all[formatKey] = binary.BigEndian.AppendUint64(nil, format)
	plain, err := object.Encode(all)
	if err != nil {
		return err
	}
	return l.inner.Set([]byte(stableKey), l.cfg.Keyring.Seal(l.stableDomain(), plain))
}

// Get implements raft.StableStore.
func (l *Log) Get(key []byte) ([]byte, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return bytes.Clone(l.stable[string(key)]), l.health.check()
}

// SetUint64 implements raft.StableStore.
func (l *Log) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	b, err := l.Get(key)
	if err != nil || len(b) == 0 {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// decode is for what was authenticated: that it does not decode is damage too.
func decode(plain []byte, v any) error {
	if err := object.Decode(plain, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}
