package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Reseal seals every container's files with the active key.
func (e *Engine) Reseal(ctx context.Context) error {
	// What is being written with the key from before is there after this.
	e.saving.Lock()
	entries, err := os.ReadDir(e.cfg.Dir)
	e.saving.Unlock()
	if err != nil {
		return fmt.Errorf("reseal containers: %w", err)
	}
	for _, d := range entries {
		if err := e.resealOne(ctx, d.Name()); err != nil {
			return fmt.Errorf("reseal container %s: %w", d.Name(), err)
		}
	}
	return nil
}

func (e *Engine) resealOne(ctx context.Context, id string) error {
	e.mu.Lock()
	c := e.byID[id]
	e.mu.Unlock()
	if c != nil { // else it is still being made
		if err := c.lock(ctx); err != nil {
			return err
		}
		defer c.unlock()
		if c.isRemoved() {
			return nil
		}
	}
	e.saving.Lock()
	defer e.saving.Unlock()
	for _, file := range []string{recordFile, stateFile} {
		if err := e.resealFile(id, file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// resealFile also removes what a crash left of writing the file.
func (e *Engine) resealFile(id, file string) error {
	path := filepath.Join(e.dir(id), file)
	if err := os.Remove(path + tmpSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sealed, err := os.ReadFile(path)
	if err != nil || e.cfg.Sealer.Current(sealed) {
		return err
	}
	plain, err := e.cfg.Sealer.Open(sealDomain(id, file), sealed)
	if err != nil {
		return err
	}
	return e.write(path, e.cfg.Sealer.Seal(sealDomain(id, file), plain), true)
}

// Discard makes the containers in dir unknown, for when nothing opens their
// files any more: the next [Open] of the directory removes them and all that
// they have, those that run too.
func Discard(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, d := range entries {
		for _, file := range []string{recordFile, stateFile} {
			if gone := os.Remove(filepath.Join(dir, d.Name(), file)); !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard containers: %w", err)
	}
	return nil
}
