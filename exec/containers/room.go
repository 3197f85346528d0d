package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// cgroupRoot is where the hierarchy is mounted, or what a cgroup namespace shows of it.
const cgroupRoot = "/sys/fs/cgroup"

// makeRoom moves the processes out of the cgroups above the containers' to one
// beside them. In cgroup version 2 a cgroup either has processes or children
// with memory and other controllers of that kind; one that has processes when
// the first container starts becomes threaded, and stays so. Only the true root
// is exempt. Not so what a container sees as the root, and there the node is.
func makeRoom(parent string) error {
	if !cgroups.IsCgroup2UnifiedMode() {
		return nil
	}
	dir := cgroupRoot
	for _, elem := range append([]string{""}, strings.Split(strings.Trim(parent, "/"), "/")...) {
		dir = filepath.Join(dir, elem)
		// The true root has no type; what does not exist has no processes.
		if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := vacate(dir, filepath.Join(cgroupRoot, parent)+"-node"); err != nil {
			return fmt.Errorf("make room in cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// vacate moves all processes from one cgroup to another.
func vacate(from, to string) error {
	// Processes that fork meanwhile need another round.
	for range 10 {
		list, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
		if err != nil || len(list) == 0 {
			return err
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(list)) {
			if pid == "0" {
				return errors.New("there are processes of another pid namespace")
			}
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) { // it ended
				return err
			}
		}
	}
	return errors.New("processes there fork faster than they can be moved")
}
