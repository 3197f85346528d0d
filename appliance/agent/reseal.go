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

// Reseal seals the agent's files with the active key, and removes what a crash may
// have left of older ones. It may be called before Run has read them.
func (a *Agent) Reseal(context.Context) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.networks.saving.Lock()
	defer a.networks.saving.Unlock()
	if err := a.resealFile(a.cfg.File, domain); err != nil {
		return fmt.Errorf("reseal task file: %w", err)
	}
	if a.cfg.NetworksFile == "" {
		return nil
	}
	if err := a.resealFile(a.cfg.NetworksFile, networksDomain); err != nil {
		return fmt.Errorf("reseal networks file: %w", err)
	}
	return nil
}

func (a *Agent) resealFile(path, domain string) error {
	dir, name := filepath.Split(path)
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
	sealed, err := os.ReadFile(path)
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
	return replace(path, a.cfg.Sealer.Seal(domain, plain))
}
