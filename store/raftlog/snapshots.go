package raftlog

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"skep/pki/seal"
	"skep/store/object"
)

// A snapshot is one sealed stream: the length of the metadata, the metadata,
// the state. It gets its name when all of it is on the disk.

const (
	snapshotSuffix = ".snap"
	partSuffix     = ".part"
	metaLimit      = 1 << 20
)

// Snapshots is a raft.SnapshotStore.
type Snapshots struct {
	cfg    *Config
	dir    string
	health *health
	log    *Log // notes the newest, so that its loss is noticed

	mu    sync.Mutex
	sinks map[*sink]bool // guarded by mu: that are being written
}

// scrub reads every snapshot once, and deletes damaged ones: the log decides
// whether it can do without.
func (s *Snapshots) scrub() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), snapshotSuffix)
		if ok {
			err := s.verify(id)
			if err == nil {
				continue
			}
			if !errors.Is(err, ErrDamaged) {
				return fmt.Errorf("read snapshot: %w", err)
			}
			s.cfg.Logger.Error("deleted damaged snapshot", "snapshot", id, "err", err)
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// newest is the index of the newest snapshot, 0 if there is none.
func (s *Snapshots) newest() uint64 {
	if metas, err := s.List(); err == nil && len(metas) > 0 {
		return metas[0].Index
	}
	return 0
}

func (s *Snapshots) path(id string) string { return filepath.Join(s.dir, id+snapshotSuffix) }

func (s *Snapshots) domain(id string) string {
	return seal.Domain("raft snapshot", s.cfg.ClusterID, s.cfg.NodeID, id)
}

// List implements raft.SnapshotStore: the newest first.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, s.health.fail(fmt.Errorf("list snapshots: %w", err))
	}
	var metas []*raft.SnapshotMeta
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), snapshotSuffix)
		if !ok {
			continue
		}
		meta, r, err := s.open(id)
		if err != nil {
			return nil, s.health.fail(fmt.Errorf("list snapshots: %w", err))
		}
		if err := r.Close(); err != nil {
			return nil, s.health.fail(fmt.Errorf("list snapshots: %w", err))
		}
		metas = append(metas, meta)
	}
	slices.SortFunc(metas, func(a, b *raft.SnapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term), strings.Compare(b.ID, a.ID))
	})
	return metas, nil
}

// Open implements raft.SnapshotStore. It verifies all of the snapshot first.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := s.health.check(); err != nil {
		return nil, nil, err
	}
	if err := s.verify(id); err != nil {
		return nil, nil, s.health.fail(fmt.Errorf("open snapshot: %w", err))
	}
	meta, r, err := s.open(id)
	if err != nil {
		return nil, nil, s.health.fail(fmt.Errorf("open snapshot: %w", err))
	}
	return meta, r, nil
}

type reader struct {
	io.Reader
	io.Closer
}

// open reads the metadata; the rest of the stream is the state.
func (s *Snapshots) open(id string) (_ *raft.SnapshotMeta, _ io.ReadCloser, err error) {
	f, err := os.Open(s.path(id))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // only read
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	r, err := s.cfg.Keyring.NewReader(s.domain(id), f)
	if err != nil {
		return nil, nil, damaged(err)
	}
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, nil, damaged(err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > metaLimit {
		return nil, nil, fmt.Errorf("%w: snapshot metadata of %d bytes", ErrDamaged, n)
	}
	plain := make([]byte, n)
	if _, err := io.ReadFull(r, plain); err != nil {
		return nil, nil, damaged(err)
	}
	meta := new(raft.SnapshotMeta)
	if err := decode(plain, meta); err != nil {
		return nil, nil, err
	}
	meta.Size = seal.PlainSize(info.Size()) - int64(len(length)) - int64(n)
	return meta, &reader{r, f}, nil
}

func (s *Snapshots) verify(id string) error {
	_, r, err := s.open(id)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(damaged(err), r.Close())
}

// damaged marks errors that mean damage, not trouble in reading.
func damaged(err error) error {
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: snapshot: %w", ErrDamaged, err)
	}
	return err
}

// Create implements raft.SnapshotStore.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	meta := raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%s", term, index, object.NewID()), Index: index, Term: term,
		Configuration: conf, ConfigurationIndex: confIndex,
	}
	k := &sink{id: meta.ID, index: index, store: s, path: s.path(meta.ID) + partSuffix, ended: make(chan struct{})}
	// Before it gets its key, for Reseal to wait for it.
	s.mu.Lock()
	s.sinks[k] = true
	s.mu.Unlock()
	err := s.health.run("create snapshot", func() (err error) {
		plain, err := object.Encode(meta)
		if err != nil {
			return err
		}
		if k.file, err = os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		k.buf = bufio.NewWriterSize(k.file, 256<<10)
		if k.sealed, err = s.cfg.Keyring.NewWriter(s.domain(meta.ID), k.buf); err != nil {
			return err
		}
		if _, err = k.sealed.Write(binary.BigEndian.AppendUint32(nil, uint32(len(plain)))); err == nil {
			_, err = k.sealed.Write(plain)
		}
		return err
	})
	if err != nil {
		k.end()
		return nil, err
	}
	return k, nil
}

// sink is a snapshot being written.
type sink struct {
	id, path string
	index    uint64
	store    *Snapshots
	file     *os.File
	buf      *bufio.Writer
	sealed   *seal.Writer
	done     bool
	ended    chan struct{}
}

// end says that the sink writes no more.
func (k *sink) end() {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	delete(k.store.sinks, k)
	close(k.ended)
}

func (k *sink) ID() string { return k.id }

func (k *sink) Write(p []byte) (n int, err error) {
	err = k.store.health.run("write snapshot", func() error {
		n, err = k.sealed.Write(p)
		return err
	})
	return n, err
}

// Cancel implements raft.SnapshotSink.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	defer k.end()
	return errors.Join(k.file.Close(), os.Remove(k.path))
}

// Close implements raft.SnapshotSink: after it the snapshot is there, whatever
// happens.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	defer k.end()
	return k.store.health.run("finish snapshot", func() error {
		if err := k.sealed.Close(); err != nil {
			return errors.Join(err, k.file.Close())
		}
		if err := k.buf.Flush(); err != nil {
			return errors.Join(err, k.file.Close())
		}
		if err := k.file.Sync(); err != nil {
			return errors.Join(err, k.file.Close())
		}
		if err := k.file.Close(); err != nil {
			return err
		}
		if err := os.Rename(k.path, k.store.path(k.id)); err != nil {
			return err
		}
		if err := syncDir(k.store.dir); err != nil {
			return err
		}
		if err := k.store.log.SetUint64([]byte(notedKey), k.index); err != nil {
			return err
		}
		return k.store.reap()
	})
}

// reap deletes all but the newest snapshots.
func (s *Snapshots) reap() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	metas, err := s.List()
	if err != nil {
		return err
	}
	retain := cmp.Or(s.cfg.Retain, 2)
	for _, m := range metas[min(retain, len(metas)):] {
		if err := os.Remove(s.path(m.ID)); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
