package volumes

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"skep/store/object"
)

// Remove deletes a volume and its data. With force it is no error that there
// is none.
func (s *Store) Remove(_ context.Context, name string, force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vols[name]
	if v == nil && force {
		return nil
	}
	if v == nil {
		return noSuch(name)
	}
	if len(v.users) > 0 {
		ids := slices.Sorted(maps.Keys(v.users))
		return object.Errorf(errdefs.ErrConflict, "remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	return s.removeLocked(name)
}

// removeLocked takes the note away first: what is left without one is a leftover.
func (s *Store) removeLocked(name string) error {
	dir := filepath.Join(s.cfg.Dir, name)
	if err := os.Remove(filepath.Join(dir, noteFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	delete(s.vols, name)
	s.tell(events.ActionDestroy, name)
	return nil
}

// Prune removes volumes that no container uses and keep does not hold back;
// named includes those that were given a name.
func (s *Store) Prune(ctx context.Context, named bool, keep func(volume.Volume) bool) (volume.PruneReport, error) {
	var report volume.PruneReport
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.vols)) {
		v := s.vols[name]
		_, anonymous := v.note.Labels[Anonymous]
		if len(v.users) > 0 || !anonymous && !named || keep != nil && keep(s.show(v)) {
			continue
		}
		size, err := diskUsage(ctx, s.Path(name))
		if err != nil {
			return report, fmt.Errorf("measure volume %s: %w", name, err)
		}
		if err := s.removeLocked(name); err != nil {
			return report, err
		}
		report.VolumesDeleted = append(report.VolumesDeleted, name)
		report.SpaceReclaimed += uint64(size)
	}
	s.tell(events.ActionPrune, "")
	return report, nil
}

// diskUsage is the space that a tree takes, hard links counted once.
func diskUsage(ctx context.Context, dir string) (total int64, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a container at work
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !d.IsDir() {
			at := inode{st.Dev, st.Ino}
			if !seen[at] {
				total += info.Size()
			}
			seen[at] = true
		}
		return ctx.Err()
	})
	return total, err
}

func randomName() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
