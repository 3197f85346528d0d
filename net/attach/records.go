// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"skep/net/link"
	"skep/store/object"
)

// record is an endpoint as it was wanted and as it was made.
type record struct {
	// Asked is what Connect was called with: a second call with the same finds
	// this record, although ports left to the node were chosen since.
	Asked object.Endpoint
	Made  object.Attachment
}

// attachment is a copy for others.
func (r *record) attachment() object.Attachment { return r.Made.Clone() }

// inside is the name of the container's end of its device.
func (r *record) inside() string { return cmp.Or(r.Asked.Interface, eth0) }

// address is that of an endpoint on the bridge; it is not valid for others.
func (r *record) address() netip.Addr {
	p, err := netip.ParsePrefix(r.Made.Address)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

func anyOnBridge(rs []*record) bool {
	return slices.ContainsFunc(rs, func(r *record) bool { return r.address().IsValid() })
}

// records keeps endpoints on disk: one file each, and one for the pool. They
// are of no use after the machine has stopped, so nothing is synced.
type records struct{ dir, namespaces string }

const (
	suffix   = ".json"
	nextFile = "next"
)

// checkID refuses what may not be the name of a file.
func checkID(id string) error {
	if id == "" || len(id) > 128 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-") != "" {
		return object.Errorf(errdefs.ErrInvalidArgument, "endpoint %q: not an ID", id)
	}
	return nil
}

func (d records) namespace(id string) string { return filepath.Join(d.namespaces, id) }

func (d records) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return d.write(r.Asked.ID+suffix, b)
}

// write replaces a file at once.
func (d records) write(name string, b []byte) error {
	tmp := filepath.Join(d.dir, "."+name)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(d.dir, name))
}

func (d records) remove(id string) error {
	err := os.Remove(filepath.Join(d.dir, id+suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load reads the records of endpoints that still exist, and removes others.
func (d records) load(log *slog.Logger) ([]*record, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var out []*record
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			// A process died while it wrote this.
			if err := os.Remove(filepath.Join(d.dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		r := &record{}
		if err := json.Unmarshal(b, r); err != nil || r.Asked.ID != id {
			log.Warn("forgot a damaged attachment", "container", id, "err", err)
			if err := d.remove(id); err != nil {
				return nil, err
			}
			continue
		}
		if r.Made.Namespace != "" && !link.Pinned(r.Made.Namespace) {
			// The machine has been started anew.
			if err := d.remove(id); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

func (d records) saveNext(a netip.Addr) error { return d.write(nextFile, []byte(a.String())) }

func (d records) loadNext() netip.Addr {
	b, err := os.ReadFile(filepath.Join(d.dir, nextFile))
	if err != nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(string(b))
	if err != nil {
		return netip.Addr{}
	}
	return a
}
