package replica

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

// A log that cannot be written to its end ends the member, and a full disk is
// hard to get out of: so the last of it is left to what is under way (to
// entries of other leaders, to snapshots, by which the log gets shorter), and
// the leader takes no changes.
const (
	leastSpace = 64 << 20
	mostSpace  = 1 << 30 // is enough however large the disk is
	spaceParts = 20      // of the disk, one of which is to be free
	spaceCheck = time.Second
)

// Space is how much of a disk is free.
type Space struct{ Free, Total uint64 }

// low is how much must be free.
func (s Space) low() uint64 { return min(max(s.Total/spaceParts, leastSpace), mostSpace) }

// spaceOf is that of the file system which a directory is in.
func spaceOf(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, fmt.Errorf("look for free space in %s: %w", dir, err)
	}
	return Space{Free: st.Bavail * uint64(st.Bsize), Total: st.Blocks * uint64(st.Bsize)}, nil
}

// room remembers for a moment whether there is space.
type room struct {
	mu  sync.Mutex
	at  time.Time // guarded by mu, as is err
	err error
}

// full is an error if the disk has no room for changes.
func (m *Member) full() error {
	if m.cfg.Space == nil {
		return nil
	}
	m.room.mu.Lock()
	defer m.room.mu.Unlock()
	if time.Since(m.room.at) < spaceCheck {
		return m.room.err
	}
	was := m.room.err
	m.room.at, m.room.err = time.Now(), nil
	s, err := m.cfg.Space()
	switch {
	case err != nil:
		m.cfg.Logger.Warn("cannot tell how much of the disk is free", "err", err)
	case s.Free < s.low():
		m.room.err = object.Errorf(errdefs.ErrResourceExhausted,
			"the disk of manager %s is full: %d MiB are free, changes need %d MiB; free some space and try again", m.cfg.NodeID, s.Free>>20, s.low()>>20)
	}
	if (was == nil) != (m.room.err == nil) {
		m.cfg.Logger.Warn("space on the disk changed", "full", m.room.err != nil, "free", s.Free)
	}
	return m.room.err
}
