// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ports is the directory under which the containers' ports are kept, one file
// each. They are of no use after the machine has stopped, so nothing is synced.
type ports string

func (d ports) path(id string) string { return filepath.Join(string(d), "dns", id) }

// load is the port that the container's rules lead to; 0 if it is not known.
func (d ports) load(id string) uint16 {
	if d == "" {
		return 0
	}
	b, err := os.ReadFile(d.path(id))
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// save replaces the file at once.
func (d ports) save(id string, port uint16) error {
	if d == "" {
		return nil
	}
	path := d.path(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep port: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+id)
	if err := os.WriteFile(tmp, fmt.Appendln(nil, port), 0o600); err != nil {
		return fmt.Errorf("keep port: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep port: %w", err)
	}
	return nil
}

func (d ports) remove(id string) {
	if d != "" {
		// What stays by mistake is a port that is tried first.
		_ = os.Remove(d.path(id))
	}
}

// retain removes the files of all but those named.
func (d ports) retain(keep map[string]bool) {
	if d == "" {
		return
	}
	entries, err := os.ReadDir(filepath.Dir(d.path("_")))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			d.remove(e.Name())
		}
	}
}
