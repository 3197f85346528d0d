// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"skep/net/link"
)

// records are the files that make networks and attachments survive the process.
type records struct{ dir string }

const suffix = ".json"

func (d records) namespaces() string { return filepath.Join(d.dir, "netns") }
func (d records) networks() string   { return filepath.Join(d.dir, "networks") }
func (d records) attached() string   { return filepath.Join(d.dir, "attached") }

func short(network string) string { return network[:min(12, len(network))] }

func (d records) namespace(network string) string {
	return filepath.Join(d.namespaces(), short(network))
}

func (d records) network(id string) string { return filepath.Join(d.networks(), short(id)+suffix) }

func (d records) end(e end) string {
	sum := sha256.Sum256([]byte(e.ID + " " + e.Network))
	return filepath.Join(d.attached(), hex.EncodeToString(sum[:16])+suffix)
}

func (d records) makeFolders() error {
	for _, dir := range []string{d.namespaces(), d.networks(), d.attached()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// destroy removes the folders, which are empty.
func (d records) destroy() error {
	var errs []error
	for _, dir := range []string{d.namespaces(), d.networks(), d.attached(), d.dir} {
		errs = append(errs, optional(os.Remove(dir)))
	}
	return errors.Join(errs...)
}

func (d records) saveNetwork(n *Network) error { return write(d.network(n.ID), n.without()) }
func (d records) saveEnd(e end) error          { return write(d.end(e), e) }

func (d records) removeNetwork(id string) error { return optional(os.Remove(d.network(id))) }
func (d records) removeEnd(e end) error         { return optional(os.Remove(d.end(e))) }

// write replaces a file at once.
func write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// loadNetworks reads the records of networks that are still there, and removes
// others.
func (d records) loadNetworks(log *slog.Logger) ([]*Network, error) {
	var out []*Network
	err := d.each(d.networks(), func(path string, b []byte) (keep bool) {
		n := &Network{}
		if err := json.Unmarshal(b, n); err != nil || d.network(n.ID) != path {
			log.Warn("forgot a damaged network", "file", path, "err", err)
			return false
		}
		if !link.Pinned(d.namespace(n.ID)) {
			return false // the machine has been started anew
		}
		out = append(out, n)
		return true
	})
	return out, err
}

// loadEnds reads those of attachments whose container is still there.
func (d records) loadEnds(log *slog.Logger) ([]end, error) {
	var out []end
	err := d.each(d.attached(), func(path string, b []byte) (keep bool) {
		e := end{}
		if err := json.Unmarshal(b, &e); err != nil || d.end(e) != path {
			log.Warn("forgot a damaged attachment", "file", path, "err", err)
			return false
		}
		if inode(e.Namespace) != e.Inode {
			return false
		}
		e.chain = planChain(e.Port, e.MAC, e.Addresses)
		out = append(out, e)
		return true
	})
	return out, err
}

// each reads the files of a folder, and removes those that are not to be kept.
func (d records) each(dir string, keep func(path string, b []byte) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// A process died while it wrote what begins with a dot.
		kept := false
		if !strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), suffix) {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			kept = keep(path, b)
		}
		if !kept {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove record: %w", err)
			}
		}
	}
	return nil
}
