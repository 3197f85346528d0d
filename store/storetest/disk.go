package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Disk is where a member keeps its log, vote and snapshots. It can be slow,
// hang, fail, and forget what was not synced: it is a raft.LogStore,
// raft.StableStore and raft.SnapshotStore.
type Disk struct {
	mu    sync.Mutex
	rng   *rand.Rand
	log   map[uint64]written
	low   uint64
	high  uint64
	kv    map[string][]byte
	snaps []*saved // the newest first
	gone  bool     // the process that had it crashed

	delay time.Duration
	fails int
	hung  chan struct{} // nil unless it hangs

	unsynced time.Duration
	mangle   func(*raft.Log)
}

type written struct {
	raft.Log
	at time.Time
}

var errDisk = errors.New("input/output error")

// NewDisk is an empty disk.
func NewDisk(seed uint64) *Disk {
	return &Disk{rng: rand.New(rand.NewPCG(seed, 7)), log: map[uint64]written{}, kv: map[string][]byte{}}
}

// Slow makes every append take a time.
func (d *Disk) Slow(delay time.Duration) { d.set(func() { d.delay = delay }) }

// Fail makes the next n appends fail.
func (d *Disk) Fail(n int) { d.set(func() { d.fails = n }) }

// Hang makes appends wait for [Disk.Mend].
func (d *Disk) Hang() {
	d.set(func() {
		if d.hung == nil {
			d.hung = make(chan struct{})
		}
	})
}

// Mend makes the disk a good one.
func (d *Disk) Mend() {
	d.set(func() {
		d.delay, d.fails = 0, 0
		if d.hung != nil {
			close(d.hung)
			d.hung = nil
		}
	})
}

// Forget makes a crash take what was appended within a time before it, as if
// nothing was ever synced.
func (d *Disk) Forget(within time.Duration) { d.set(func() { d.unsynced = within }) }

// Mangle changes what is read.
func (d *Disk) Mangle(do func(*raft.Log)) { d.set(func() { d.mangle = do }) }

func (d *Disk) set(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
}

// Crash is what is on the disk after the process, or the power, was gone at
// this moment. What the process still does goes nowhere.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &Disk{
		rng: d.rng, log: maps.Clone(d.log), low: d.low, high: d.high, kv: maps.Clone(d.kv), snaps: slices.Clone(d.snaps),
		delay: d.delay, unsynced: d.unsynced, mangle: d.mangle,
	}
	if d.unsynced > 0 {
		flushed := time.Now().Add(-time.Duration(d.rng.Int64N(int64(d.unsynced))))
		for c.high > 0 && c.high >= c.low && c.log[c.high].at.After(flushed) {
			delete(c.log, c.high)
			c.high--
		}
		if len(c.log) == 0 {
			c.low, c.high = 0, 0
		}
	}
	d.gone = true
	if d.hung != nil {
		close(d.hung)
		d.hung = nil
	}
	return c
}

// StoreLogs implements raft.LogStore.
func (d *Disk) StoreLogs(logs []*raft.Log) error {
	d.mu.Lock()
	hung, delay := d.hung, d.delay
	d.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if delay > 0 {
		<-time.After(delay)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return errDisk
	}
	if d.fails > 0 {
		d.fails--
		return errDisk
	}
	for _, l := range logs {
		d.log[l.Index] = written{*l, time.Now()}
		if d.low == 0 || l.Index < d.low {
			d.low = l.Index
		}
		d.high = max(d.high, l.Index)
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (d *Disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// GetLog implements raft.LogStore.
func (d *Disk) GetLog(index uint64, out *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return errDisk // what of Raft outlived the crash is to halt
	}
	w, ok := d.log[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = w.Log
	if d.mangle != nil {
		d.mangle(out)
	}
	return nil
}

// FirstIndex implements raft.LogStore.
func (d *Disk) FirstIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.low, nil
}

// LastIndex implements raft.LogStore.
func (d *Disk) LastIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.high, nil
}

// DeleteRange implements raft.LogStore.
func (d *Disk) DeleteRange(first, last uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := first; i <= last; i++ {
		delete(d.log, i)
	}
	if first <= d.low {
		d.low = last + 1
	}
	if last >= d.high {
		d.high = first - 1
	}
	if d.low > d.high {
		d.low, d.high = 0, 0
	}
	return nil
}

var errNotFound = errors.New("not found") // Raft compares the text

// Set implements raft.StableStore.
func (d *Disk) Set(key, value []byte) error {
	d.set(func() { d.kv[string(key)] = bytes.Clone(value) })
	return nil
}

// Get implements raft.StableStore.
func (d *Disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.kv[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return v, nil
}

// SetUint64 implements raft.StableStore.
func (d *Disk) SetUint64(key []byte, value uint64) error { return d.Set(key, fmt.Append(nil, value)) }

// GetUint64 implements raft.StableStore.
func (d *Disk) GetUint64(key []byte) (n uint64, err error) {
	v, err := d.Get(key)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(v), &n)
	return n, err
}

// saved is one snapshot.
type saved struct {
	meta raft.SnapshotMeta
	data []byte
}

// sink takes a snapshot, which is there when it is closed.
type sink struct {
	bytes.Buffer
	disk *Disk
	meta raft.SnapshotMeta
	over bool
}

// Create implements raft.SnapshotStore.
func (d *Disk) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{disk: d, meta: raft.SnapshotMeta{
		Version: v, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano()), Index: index, Term: term, Configuration: conf, ConfigurationIndex: at,
	}}, nil
}

func (s *sink) ID() string { return s.meta.ID }

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error {
	s.over = true
	return nil
}

// Close implements raft.SnapshotSink.
func (s *sink) Close() error {
	if s.over {
		return nil
	}
	s.over = true
	s.meta.Size = int64(s.Len())
	s.disk.set(func() {
		s.disk.snaps = append([]*saved{{s.meta, s.Bytes()}}, s.disk.snaps...)
		s.disk.snaps = s.disk.snaps[:min(2, len(s.disk.snaps))]
	})
	return nil
}

// List implements raft.SnapshotStore.
func (d *Disk) List() (metas []*raft.SnapshotMeta, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.snaps {
		metas = append(metas, new(s.meta))
	}
	return metas, nil
}

// Open implements raft.SnapshotStore.
func (d *Disk) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.snaps {
		if s.meta.ID == id {
			return new(s.meta), io.NopCloser(bytes.NewReader(s.data)), nil
		}
	}
	return nil, nil, errNotFound
}
