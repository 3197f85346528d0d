package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Reseal seals the task file with the active key, and removes what a crash may
// have left of older ones. It may be called before Run has read the file.
func (a *Agent) Reseal(context.Context) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	if err := a.resealFile(); err != nil {
		return fmt.Errorf("reseal task file: %w", err)
	}
	return nil
}

func (a *Agent) resealFile() error {
	dir, name := filepath.Split(a.cfg.File)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+".") {
			if err = os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	sealed, err := os.ReadFile(a.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	plain, err := a.cfg.Sealer.Open(domain, sealed)
	if err != nil {
		return err
	}
	return replace(a.cfg.File, a.cfg.Sealer.Seal(domain, plain))
}
