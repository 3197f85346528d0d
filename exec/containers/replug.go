package containers

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"skep/exec/runspec"
	"skep/store/object"
)

// replug puts a running container on the networks of its record, and tells
// which places it then has. If it fails, the container is on those that it was on.
func (e *Engine) replug(ctx context.Context, r *record, at object.Attachment) ([]object.Overlay, error) {
	places, fresh, err := e.morePlaces(ctx, r, at.Endpoint.Overlays)
	if err != nil {
		return nil, err
	}
	var next object.Attachment
	ep, err := endpoint(r, at.Network, places)
	if err == nil {
		next, err = e.cfg.Networks.Rewire(ctx, ep)
	}
	if err != nil {
		if fresh != "" {
			e.cfg.Guests.ReleaseOne(r.ID, fresh)
		}
		return nil, err
	}
	for _, o := range at.Endpoint.Overlays {
		if !slices.ContainsFunc(places, func(p object.Overlay) bool { return p.Task == o.Task }) {
			e.cfg.Guests.ReleaseOne(r.ID, o.Task)
		}
	}
	if err := e.rewriteNames(r, at, next); err != nil {
		// It is connected; only files that its users may change are not as they were.
		e.cfg.Logger.WarnContext(ctx, "did not rewrite a container's names", "container", r.ID[:12], "err", err)
	}
	return placesOf(next), nil
}

// morePlaces are those that the container has of what its record says, and the
// one that it lacks, which is asked for.
func (e *Engine) morePlaces(ctx context.Context, r *record, has []object.Overlay) (places []object.Overlay, fresh string, err error) {
	twice := func(o object.Overlay) error {
		if slices.ContainsFunc(places, func(p object.Overlay) bool { return p.Network == o.Network }) {
			return object.Errorf(errdefs.ErrPermissionDenied, "endpoint with name %s already exists in network %s", r.Name, cmp.Or(o.Name, o.Network))
		}
		return nil
	}
	missing := ""
	for _, name := range r.guestNetworks() {
		i := slices.IndexFunc(has, func(o object.Overlay) bool { return called(o, name) })
		if i < 0 {
			missing = name
			continue
		}
		if err = twice(has[i]); err != nil {
			return nil, "", err
		}
		places = append(places, has[i])
	}
	if missing == "" {
		return places, "", nil
	}
	o, err := e.cfg.Guests.Attach(ctx, guestRequest(r, missing))
	if err != nil {
		return nil, "", err
	}
	if err := twice(o); err != nil {
		e.cfg.Guests.ReleaseOne(r.ID, o.Task)
		return nil, "", err
	}
	return append(places, o), o.Task, nil
}

// called reports whether a place is on the network that a user calls so: by its
// name, its ID or the beginning of it.
func called(o object.Overlay, name string) bool {
	return name == o.Name || name == o.Network || len(name) >= 12 && strings.HasPrefix(o.Network, name)
}

// rewriteNames changes in the files of a running container's names what its
// networks change; the rest may be its users' by now.
func (e *Engine) rewriteNames(r *record, before, after object.Attachment) error {
	host := runspec.Hostname(r.ID, &r.Config)
	old, failed := resolver(&r.Host, before)
	resolv, err := resolver(&r.Host, after)
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	dir := e.dir(r.ID)
	return errors.Join(
		rewrite(filepath.Join(dir, "hosts"), func(now []byte) []byte {
			return relined(now, hosts(r, before, host), hosts(r, after, host))
		}),
		rewrite(filepath.Join(dir, "resolv.conf"), func(now []byte) []byte {
			if !bytes.Equal(now, old) {
				return now
			}
			return resolv
		}),
	)
}

// rewrite changes a file in its place: it is mounted.
func rewrite(path string, change func([]byte) []byte) error {
	now, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	next := change(now)
	if bytes.Equal(now, next) {
		return nil
	}
	return os.WriteFile(path, next, 0o644)
}

// relined takes lines out of a file that are in before and not in after, and
// appends those that are in after only.
func relined(now, before, after []byte) []byte {
	had, has := slices.Collect(bytes.Lines(before)), slices.Collect(bytes.Lines(after))
	among := func(lines [][]byte, l []byte) bool {
		return slices.ContainsFunc(lines, func(o []byte) bool { return bytes.Equal(o, l) })
	}
	var out []byte
	for l := range bytes.Lines(now) {
		if !among(had, l) || among(has, l) {
			out = append(out, l...)
		}
	}
	for _, l := range has {
		if !among(had, l) {
			out = append(out, l...)
		}
	}
	return out
}
