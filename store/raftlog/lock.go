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

// claim notes in the locked file whose directory it is, once.
func claim(f *os.File, cfg Config) error {
	owner := fmt.Sprintf("cluster %s member %s\n", cfg.ClusterID, cfg.NodeID)
	noted, err := io.ReadAll(io.LimitReader(f, 4<<10))
	switch {
	case err != nil:
		return err
	case string(noted) == owner:
		return nil
	case strings.HasPrefix(owner, string(noted)): // nothing yet, or a crash cut it short
		_, err := f.WriteAt([]byte(owner), 0)
		return errors.Join(err, f.Sync())
	}
	return fmt.Errorf("%s %w: it is of %q, and this is %q", cfg.Dir, ErrForeign, strings.TrimSpace(string(noted)), strings.TrimSpace(owner))
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
