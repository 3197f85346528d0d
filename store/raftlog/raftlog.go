// Package raftlog keeps a Raft member's log, its vote and its snapshots on
// disk, sealed.
//
// It promises that what it hands out is what was stored, for that index of that
// member of that cluster, or an error: a flipped bit, a lost, swapped or cut
// page or file is always noticed, at the latest when the store is opened, where
// everything is read once. What it acknowledges is on the disk. After the first
// failure of the disk it refuses all further work, because no one knows any
// more what is on it.
//
// It cannot notice that the whole directory was put back to an older state.
//
// The log and the vote are in one bbolt file under raft-boltdb, of which only
// the indexes and the lengths are readable; a snapshot is a file of its own.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"skep/pki/seal"
	"skep/store/object"
)

// ErrDamaged says that what is on the disk is not what was stored there. The
// member must not take part with it: it would vote on a past that it forgot.
var ErrDamaged = errors.New("raft log is damaged")

// ErrFailed says that something was not written or read as it should, so that
// this process does no longer know what is on the disk. The next one looks.
var ErrFailed error = failure{}

type failure struct{}

func (failure) Error() string { return "the disk failed" }

// ExitStatus is the code that the process is to end with.
func (failure) ExitStatus() int { return 74 }

// Config is what a Log needs.
type Config struct {
	// Dir holds the files, and nothing else; it is made if it is not there.
	Dir string
	// ClusterID and NodeID are bound to everything that is stored.
	ClusterID, NodeID string
	Keyring           *seal.Keyring
	// Retain is how many snapshots are kept; 0 means 2.
	Retain int
	// Failed is told of the first failure, from any goroutine. It may be nil.
	Failed func(error)
	Logger *slog.Logger
}

// Log is a raft.LogStore, raft.StableStore and raft.MonotonicLogStore.
type Log struct {
	cfg    Config
	lock   *os.File
	inner  *raftboltdb.BoltStore
	domain string
	health health

	mu     sync.RWMutex
	bounds bounds            // of the entries that count
	stable map[string][]byte // as on the disk
}

// bounds are the first and last index of a log. Last is below First if it is
// empty. They are stored with every change of the log, because bbolt cannot
// tell that its last entries are missing.
type bounds struct {
	First uint64 `cbor:"first"`
	Last  uint64 `cbor:"last"`
}

func (b bounds) empty() bool { return b.Last < b.First }

const (
	fileName = "raft.db"
	// boundsIndex is where the bounds are stored in the log: in the page that
	// the last entries are in, so that storing them costs nothing.
	boundsIndex = math.MaxUint64
	stableKey   = "stable"
	// notedKey is where the index of the newest snapshot is noted, in the stable store.
	notedKey = "skep snapshot"
	// formatKey is where the format of all that is stored is noted; without it that is 1.
	formatKey = "skep format"
	format    = 1
)

// ErrNewer says that the log was written by a newer version of this program.
var ErrNewer = errors.New("written by a newer version of this program: start that one, or a newer one")

// Open opens the log in cfg.Dir, or makes one, and reads all of it.
func Open(cfg Config) (*Log, *Snapshots, error) {
	l := &Log{cfg: cfg, domain: seal.Domain("raft log", cfg.ClusterID, cfg.NodeID)}
	l.health.failed = cfg.Failed
	snaps := &Snapshots{cfg: &l.cfg, dir: filepath.Join(cfg.Dir, "snapshots"), health: &l.health, log: l, sinks: map[*sink]bool{}}
	err := os.MkdirAll(snaps.dir, 0o700)
	if err == nil {
		l.lock, err = lock(cfg.Dir)
	}
	if err == nil {
		if err = l.own(); err == nil {
			err = l.openAll(snaps)
		}
		if err != nil {
			err = errors.Join(err, l.lock.Close())
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open raft log: %w", err)
	}
	return l, snaps, nil
}

// own makes the directory this member's, with an empty log. A log that was there
// before and is not any more is damaged: it must not begin anew.
func (l *Log) own() error {
	before, err := claimed(l.lock, l.cfg)
	if err != nil {
		return err
	}
	path := filepath.Join(l.cfg.Dir, fileName)
	if _, err := os.Stat(path); before && errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, path)
	}
	if err := create(path); err != nil || before {
		return err
	}
	return claim(l.lock, l.cfg)
}

func (l *Log) openAll(snaps *Snapshots) error {
	if err := snaps.scrub(); err != nil {
		return err
	}
	path := filepath.Join(l.cfg.Dir, fileName)
	if err := checkFile(path); err != nil {
		return err
	}
	err := guard(func() (err error) {
		l.inner, err = raftboltdb.New(options(path))
		return err
	})
	if err != nil {
		return err
	}
	if err := guard(func() error { return l.load(snaps.newest()) }); err != nil {
		return errors.Join(err, guard(l.inner.Close))
	}
	return nil
}

func options(path string) raftboltdb.Options {
	return raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
		Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true,
	}}
}

// prepared is how large the file is from the start.
const prepared = 16 << 20

// create makes the file, if there is none. It gets its name when it is whole
// on the disk, so that what has the name and is not whole is damaged.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	part := path + partSuffix
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := raftboltdb.New(options(part))
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := prepare(part); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// prepare gives the file its blocks before they are needed: to write where
// nothing was written before makes every sync wait for the file system's
// journal too.
func prepare(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	zeros := make([]byte, 1<<20)
	for at := info.Size(); at < prepared && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), prepared-at)], at)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Close closes the file and lets others open it.
func (l *Log) Close() error {
	if err := errors.Join(guard(l.inner.Close), l.lock.Close()); err != nil {
		return fmt.Errorf("close raft log: %w", err)
	}
	return nil
}

// health remembers the first failure.
type health struct {
	failed func(error)
	mu     sync.Mutex
	err    error
}

func (h *health) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// fail makes err the failure, if it is one and the first.
func (h *health) fail(err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrFailed) {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	h.mu.Lock()
	first := h.err == nil
	if first {
		h.err = err
	}
	h.mu.Unlock()
	if first && h.failed != nil {
		h.failed(err)
	}
	return err
}

// run does what is asked of a store that has not failed.
func (h *health) run(what string, do func() error) error {
	if err := h.check(); err != nil {
		return err
	}
	if err := guard(do); err != nil {
		return h.fail(fmt.Errorf("%s: %w", what, err))
	}
	return nil
}

// guard turns a panic over a bad page, and a fault in the mapped file, into an error.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return do()
}

func (l *Log) seal(index uint64, plain []byte) *raft.Log {
	return &raft.Log{Index: index, Data: l.cfg.Keyring.Seal(l.at(index), plain)}
}

func (l *Log) open(index uint64) ([]byte, error) {
	var sealed raft.Log
	if err := l.inner.GetLog(index, &sealed); err != nil {
		return nil, err
	}
	if sealed.Index != index {
		return nil, fmt.Errorf("%w: entry %d is stored as %d", ErrDamaged, sealed.Index, index)
	}
	plain, err := l.cfg.Keyring.Open(l.at(index), sealed.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrDamaged, index, err)
	}
	return plain, nil
}

func (l *Log) sealedBounds(b bounds) (*raft.Log, error) {
	plain, err := object.Encode(b)
	if err != nil {
		return nil, err
	}
	return l.seal(boundsIndex, plain), nil
}
