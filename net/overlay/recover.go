// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"os"
	"path/filepath"

	"skep/net/link"
)

// recover takes over what an earlier process made, and removes what it was
// about to make or to remove when it died.
func (o *Overlay) recover(ctx context.Context) error {
	if err := o.disk.makeFolders(); err != nil {
		return err
	}
	if err := raiseNeighbours(); err != nil {
		o.log.WarnContext(ctx, "left the limit of neighbours as it is", "err", err)
	}
	networks, err := o.disk.loadNetworks(o.log)
	if err != nil {
		return err
	}
	ends, err := o.disk.loadEnds(o.log)
	if err != nil {
		return err
	}
	for _, n := range networks {
		s := newSegment(n, o.disk.namespace(n.ID))
		o.segments[n.ID] = s
		if err := link.Within(s.path, s.connect); err != nil {
			return err
		}
	}
	for _, e := range ends {
		if o.segments[e.Network] == nil {
			if err := o.disk.removeEnd(e); err != nil {
				return err
			}
			continue
		}
		if o.ends[e.ID] == nil {
			o.ends[e.ID] = map[string]end{}
		}
		o.ends[e.ID][e.Network] = e
	}
	if err := o.sweep(); err != nil {
		return err
	}
	// Ports without a record go, and those that have one may send again.
	for _, s := range o.segments {
		if _, _, err := o.converge(ctx, s); err != nil {
			o.log.WarnContext(ctx, "did not mend network", "network", s.id, "err", err)
		}
	}
	return nil
}

// sweep removes namespaces that no record is for.
func (o *Overlay) sweep() error {
	used := map[string]bool{}
	for _, s := range o.segments {
		used[s.path] = true
	}
	entries, err := os.ReadDir(o.disk.namespaces())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(o.disk.namespaces(), e.Name())
		if used[path] {
			continue
		}
		s := &segment{id: e.Name(), path: path}
		if link.Pinned(path) {
			if err := link.Within(path, s.connect); err != nil {
				return err
			}
		}
		if err := s.raze(); err != nil {
			return err
		}
	}
	return nil
}
