package appliance

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"skep/pki/identity"
)

// dataDir is where a node keeps what must outlive it. What lies under run is
// in memory: it outlives the process, not the machine.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes and locks the directory and mounts its run directory. A
// second node in the same directory is refused.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	// Mounts are found by their real path.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	d := &dataDir{path: path}
	if d.lock, err = os.OpenFile(d.join("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another skep", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := d.mountRun(); err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

func (d *dataDir) join(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// scope tells the node's names in the kernel (bridge, tables, cgroups) from
// those of another node on the same machine.
func (d *dataDir) scope() string {
	sum := sha256.Sum256([]byte(d.path))
	return hex.EncodeToString(sum[:3])
}

// checkKeys refuses a directory that has lost its keystore: with new keys, what
// the old ones sealed could not be read, and would be taken for damaged.
func (d *dataDir) checkKeys() error {
	if has, err := identity.Exists(d.path); has || err != nil {
		return err
	}
	for _, name := range []string{"raft", "tasks", "networks", "audit"} {
		if _, err := os.Stat(d.join(name)); err == nil {
			return fmt.Errorf("data directory %s has no keystore, which has the keys of what lies in %s: put the keystore back, or begin anew with skep reset", d.path, name)
		}
	}
	return nil
}

// mountRun mounts a tmpfs on run unless an earlier process did. Secrets live
// there, so it is kept from being swapped out where the kernel can do that.
func (d *dataDir) mountRun() error {
	run := d.join("run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	mounted, err := mountinfo.Mounted(run)
	if err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	if mounted {
		return nil
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if unix.Mount("tmpfs", run, "tmpfs", flags, "mode=0700,noswap") == nil {
		return nil
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", flags, "mode=0700"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", run, err)
	}
	return nil
}

// Close gives the directory up; run stays mounted for the containers in it.
func (d *dataDir) Close() error { return d.lock.Close() }
