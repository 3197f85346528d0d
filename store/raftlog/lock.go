package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process, or another member in this one, has the
// directory.
var ErrInUse = errors.New("in use by another process")

// ErrForeign says that a directory is that of another member, or another swarm.
var ErrForeign = errors.New("belongs to another member")

func (c *Config) owner() string {
	return fmt.Sprintf("cluster %s member %s\n", c.ClusterID, c.NodeID)
}

// claim notes in the locked file whose directory it is, once.
//
// Invariant: a directory that is claimed has had a log.
func claim(f *os.File, cfg Config) error {
	_, err := f.WriteAt([]byte(cfg.owner()), 0)
	return errors.Join(err, f.Sync())
}

// claimed tells whether the directory is this member's, and not nobody's.
func claimed(f *os.File, cfg Config) (bool, error) {
	owner := cfg.owner()
	noted, err := io.ReadAll(io.LimitReader(f, 4<<10))
	switch {
	case err != nil:
		return false, err
	case string(noted) == owner:
		return true, nil
	case strings.HasPrefix(owner, string(noted)): // nothing yet, or a crash cut it short
		return false, nil
	}
	return false, fmt.Errorf("%s %w: it is of %q, and this is %q", cfg.Dir, ErrForeign, strings.TrimSpace(string(noted)), strings.TrimSpace(owner))
}

// lock keeps the directory to one member, until the file is closed or the
// process ends in whatever way.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s is %w", dir, ErrInUse)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
