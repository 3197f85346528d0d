package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skep/admin/engine"
	"skep/appliance/config"
	"skep/pki/identity"
)

// Reset takes a stopped node off its machine: its containers, what it made in
// the kernel, and all of its data. It is the end of the node's identity too.
func Reset(ctx context.Context, path string, logs io.Writer) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	n := &node{cfg: cfg, logger: newLogger(cfg.Log, logs), journal: engine.NewJournal()}
	defer n.close()
	err = n.open(ctx, n.ground())
	if errors.Is(err, identity.ErrLocked) {
		n.keys, err = n.abandon() // nothing is left that needs its key
	}
	if err == nil {
		err = n.open(ctx, n.runtime())
	}
	if err != nil {
		return err
	}
	if err := n.removeContainers(ctx); err != nil {
		return fmt.Errorf("remove containers: %w", err)
	}
	if err := n.network.destroy(ctx); err != nil {
		return fmt.Errorf("remove networks: %w", err)
	}
	if err := removeCgroups("skep-" + n.dir.scope()); err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	return n.dir.remove()
}

// removeContainers removes every container while they are watched over: a
// removal waits for the end.
func (n *node) removeContainers(ctx context.Context) error {
	list, err := n.containers.List(ctx, true, false)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var watch errgroup.Group
	watch.Go(func() error { return n.containers.Run(running) })
	var removals errgroup.Group
	removals.SetLimit(16)
	for _, c := range list {
		removals.Go(func() error { return n.containers.Remove(ctx, c.ID, true, true) })
	}
	err = removals.Wait()
	stop()
	return errors.Join(err, watch.Wait())
}

// removeCgroups removes the node's cgroups, in which nothing runs any more, from
// every hierarchy.
func removeCgroups(name string) error {
	const root = "/sys/fs/cgroup"
	v1, err := filepath.Glob(filepath.Join(root, "*", name))
	if err != nil {
		return err
	}
	for _, dir := range append(v1, filepath.Join(root, name)) {
		err = errors.Join(err, cgroups.RemovePath(dir))
	}
	return err
}

// remove removes the directory, which nothing uses any more.
func (d *dataDir) remove() error {
	if err := unix.Unmount(d.join("run"), 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.join("run"), err)
	}
	if err := os.RemoveAll(d.path); err != nil {
		return fmt.Errorf("remove data directory: %w", err)
	}
	return nil
}
