package raftlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"skep/pki/seal"
)

// resealBatch is how many entries are sealed anew at a time: the log's writers
// wait that long.
const resealBatch = 256

// Reseal seals all that is on the disk with the key that is active when it is
// called, while the log is in use. When it returns nil nothing there needs
// another key. After a crash or an error at any point all can be read, as long
// as the older keys are in the keyring, and Reseal begins again.
func Reseal(ctx context.Context, l *Log, s *Snapshots) error {
	if err := l.reseal(ctx); err != nil {
		return fmt.Errorf("seal raft log anew: %w", err)
	}
	if err := s.reseal(ctx); err != nil {
		return fmt.Errorf("seal snapshots anew: %w", err)
	}
	if err := errors.Join(l.current(ctx), s.current()); err != nil {
		return fmt.Errorf("seal anew: %w", err)
	}
	return nil
}

// errOldKey says that something is still sealed with an older key.
var errOldKey = errors.New("sealed with an older key")

func (l *Log) reseal(ctx context.Context) error {
	for next := uint64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		done, err := l.resealFrom(&next)
		if done || err != nil {
			return err
		}
	}
}

// resealFrom seals a batch of entries anew, and at the end all else.
func (l *Log) resealFrom(next *uint64) (done bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.health.run("seal log entries anew", func() error {
		*next = max(*next, l.bounds.First)
		var batch []*raft.Log
		for ; *next <= l.bounds.Last && len(batch) < resealBatch; *next++ {
			e, failed := l.anew(*next)
			if failed != nil {
				return failed
			}
			if e != nil {
				batch = append(batch, e)
			}
		}
		if done = *next > l.bounds.Last; done {
			switch head, failed := l.anew(boundsIndex); {
			case errors.Is(failed, raft.ErrLogNotFound): // nothing was stored yet
			case failed != nil:
				return failed
			case head != nil:
				batch = append(batch, head)
			}
			if failed := l.storeStable(l.stable); failed != nil {
				return failed
			}
		}
		if len(batch) == 0 {
			return nil
		}
		return l.inner.StoreLogs(batch)
	})
	return done, err
}

// anew is an entry sealed with the active key, or nil if it is already.
func (l *Log) anew(index uint64) (*raft.Log, error) {
	var sealed raft.Log
	if err := l.inner.GetLog(index, &sealed); err != nil {
		return nil, err
	}
	if l.cfg.Keyring.Current(sealed.Data) {
		return nil, nil
	}
	plain, err := l.open(index)
	if err != nil {
		return nil, err
	}
	return l.seal(index, plain), nil
}

// current is errOldKey if anything in the log needs another key than the active.
func (l *Log) current(ctx context.Context) error {
	l.mu.RLock()
	bounds := l.bounds
	l.mu.RUnlock()
	for i := bounds.First; i <= bounds.Last; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.currentAt(i); err != nil {
			return err
		}
	}
	if err := l.currentAt(boundsIndex); err != nil {
		return err
	}
	old := false
	l.mu.RLock()
	defer l.mu.RUnlock()
	err := l.health.run("look at vote", func() error {
		sealed, err := l.inner.Get([]byte(stableKey))
		if errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return nil
		}
		old = err == nil && !l.cfg.Keyring.Current(sealed)
		return err
	})
	if old {
		return fmt.Errorf("vote: %w", errOldKey)
	}
	return err
}

func (l *Log) currentAt(index uint64) error {
	old := false
	l.mu.RLock()
	defer l.mu.RUnlock()
	err := l.health.run("look at log entry", func() error {
		e, err := l.anew(index)
		if errors.Is(err, raft.ErrLogNotFound) { // it was deleted since
			return nil
		}
		old = e != nil
		return err
	})
	if old {
		return fmt.Errorf("entry %d: %w", index, errOldKey)
	}
	return err
}

func (s *Snapshots) reseal(ctx context.Context) error {
	// Those that are being written may have begun with an older key.
	s.mu.Lock()
	var open []*sink
	for k := range s.sinks {
		open = append(open, k)
	}
	s.mu.Unlock()
	for _, k := range open {
		select {
		case <-k.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	metas, err := s.List()
	if err != nil {
		return err
	}
	for _, m := range metas {
		if err := s.resealOne(ctx, m.ID); err != nil {
			return err
		}
	}
	return nil
}

// resealOne puts a copy under the active key in a snapshot's place.
func (s *Snapshots) resealOne(ctx context.Context, id string) error {
	current, err := s.currentOf(id)
	if current || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	part := s.path(id) + partSuffix
	if err := s.copyTo(ctx, id, part); err != nil {
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), os.Remove(part))
		}
		return s.health.fail(fmt.Errorf("copy snapshot: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Stat(s.path(id)); errors.Is(err, os.ErrNotExist) {
		return os.Remove(part) // a newer one has taken its place
	}
	return s.health.run("replace snapshot", func() error {
		if err := os.Rename(part, s.path(id)); err != nil {
			return err
		}
		return syncDir(s.dir)
	})
}

func (s *Snapshots) copyTo(ctx context.Context, id, part string) (err error) {
	from, err := os.Open(s.path(id))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	plain, err := s.cfg.Keyring.NewReader(s.domain(id), bufio.NewReader(from))
	if err != nil {
		return damaged(err)
	}
	to, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	buf := bufio.NewWriterSize(to, 256<<10)
	sealed, err := s.cfg.Keyring.NewWriter(s.domain(id), buf)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sealed, &untilDone{ctx.Done(), plain}); err != nil {
		return damaged(err)
	}
	if err := sealed.Close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return to.Sync()
}

func (s *Snapshots) currentOf(id string) (bool, error) {
	f, err := os.Open(s.path(id))
	if err != nil {
		return false, err
	}
	header := make([]byte, seal.Overhead)
	_, err = io.ReadFull(f, header)
	return s.cfg.Keyring.Current(header), errors.Join(damaged(err), f.Close())
}

// current is errOldKey if a snapshot, whole or not, needs another key than the active.
func (s *Snapshots) current() error {
	names, err := filepath.Glob(filepath.Join(s.dir, "*"+snapshotSuffix))
	if err != nil {
		return err
	}
	for _, name := range names {
		id := filepath.Base(name[:len(name)-len(snapshotSuffix)])
		switch current, err := s.currentOf(id); {
		case errors.Is(err, os.ErrNotExist): // reaped since
		case err != nil:
			return err
		case !current:
			return fmt.Errorf("snapshot %s: %w", id, errOldKey)
		}
	}
	return nil
}

// untilDone reads until ctx ends.
type untilDone struct {
	done <-chan struct{}
	io.Reader
}

func (r *untilDone) Read(b []byte) (int, error) {
	select {
	case <-r.done:
		return 0, context.Canceled
	default:
		return r.Reader.Read(b)
	}
}
