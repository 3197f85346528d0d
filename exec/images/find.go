package images

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"skep/store/object"
)

// parse reads a name as a user writes it and completes it: nginx is
// docker.io/library/nginx:latest.
func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	return reference.TagNameOnly(named), nil
}

// digestOf is the digest that a name is pinned to, or empty.
func digestOf(named reference.Named) digest.Digest {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

// tagOf is the tag of a name, or empty.
func tagOf(named reference.Named) string {
	if t, ok := named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// tagged is the key of a repository and tag in state.Names.
func tagged(named reference.Named, tag string) string { return named.Name() + ":" + tag }

// digested is the key of a repository and digest in state.Names.
func digested(named reference.Named, d digest.Digest) string { return named.Name() + "@" + d.String() }

// familiar is a key of state.Names as a user writes it.
func familiar(key string) string {
	named, err := reference.ParseNormalizedNamed(key)
	if err != nil {
		return key
	}
	return reference.FamiliarString(named)
}

// noSuchImage is the error that clients know.
func noSuchImage(ref string) error {
	if named, err := parse(ref); err == nil {
		ref = reference.FamiliarString(named)
	}
	return object.Errorf(errdefs.ErrNotFound, "No such image: %s", ref)
}

// byID says whether ref can only be an ID, and which.
func byID(ref string) (digest.Digest, bool) {
	if d := digest.Digest(ref); d.Validate() == nil {
		return d, true
	}
	if d := digest.Digest("sha256:" + ref); d.Validate() == nil {
		return d, true
	}
	return "", false
}

// find is the image that ref means, and the key of the name by which it was
// found: empty when it was found by its ID.
func (st *state) find(ref string) (record, string, error) {
	if ref == "" {
		return record{}, "", object.Errorf(errdefs.ErrInvalidArgument, "invalid reference format")
	}
	if id, ok := byID(ref); ok {
		if rec, ok := st.image(id); ok {
			return rec, "", nil
		}
		return record{}, "", object.Errorf(errdefs.ErrNotFound, "No such image: %s", ref)
	}
	named, err := parse(ref)
	if err == nil {
		if rec, key, ok := st.named(named); ok {
			return rec, key, nil
		}
		if digestOf(named) != "" {
			return record{}, "", noSuchImage(ref)
		}
	}
	rec, found, prefixErr := st.prefix(ref)
	switch {
	case prefixErr != nil:
		return record{}, "", prefixErr
	case found:
		return rec, "", nil
	case err != nil:
		return record{}, "", err
	}
	return record{}, "", noSuchImage(ref)
}

// named looks for a completed name. A digest is the whole truth about an
// image, so a name with one is found under any repository.
func (st *state) named(named reference.Named) (record, string, bool) {
	if d := digestOf(named); d != "" {
		for _, target := range slices.Sorted(maps.Keys(st.Images)) {
			if rec := st.Images[target]; target == d || rec.Manifest == d {
				key := digested(named, target)
				if st.Names[key] == "" {
					key = ""
				}
				return rec, key, true
			}
		}
		return record{}, "", false
	}
	key := tagged(named, tagOf(named))
	rec, ok := st.Images[st.Names[key]]
	return rec, key, ok
}

// image is the image of an ID; of several with the same config, one with a name.
func (st *state) image(id digest.Digest) (record, bool) {
	targets := st.targets(id)
	if len(targets) == 0 {
		if rec, ok := st.Images[id]; ok {
			return rec, true
		}
		return record{}, false
	}
	for _, t := range targets {
		if len(st.names(t)) > 0 {
			return st.Images[t], true
		}
	}
	return st.Images[targets[0]], true
}

// targets are the targets of all images with the given ID, in order.
func (st *state) targets(id digest.Digest) []digest.Digest {
	var found []digest.Digest
	for target, rec := range st.Images {
		if rec.Config == id {
			found = append(found, target)
		}
	}
	slices.Sort(found)
	return found
}

// names are the keys of all names of a target, in order.
func (st *state) names(target digest.Digest) []string {
	var keys []string
	for key, t := range st.Names {
		if t == target {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// ids are the IDs of all images, in order.
func (st *state) ids() []digest.Digest {
	ids := map[digest.Digest]bool{}
	for _, rec := range st.Images {
		ids[rec.Config] = true
	}
	return slices.Sorted(maps.Keys(ids))
}

// prefix looks for the one image whose ID starts with ref.
func (st *state) prefix(ref string) (record, bool, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
		return record{}, false, nil
	}
	var found []digest.Digest
	for _, id := range st.ids() {
		if strings.HasPrefix(id.Encoded(), hex) {
			found = append(found, id)
		}
	}
	if len(found) > 1 {
		return record{}, false, object.Errorf(errdefs.ErrInvalidArgument, "image ID prefix %s is ambiguous", ref)
	}
	if len(found) == 0 {
		return record{}, false, nil
	}
	rec, ok := st.image(found[0])
	return rec, ok, nil
}

// findOrMake is find, and makes skep/hello when that is what is missing.
func (s *Store) findOrMake(ctx context.Context, ref string) (record, error) {
	rec, _, err := s.state.Load().find(ref)
	if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
		return rec, err
	}
	named, parseErr := parse(ref)
	if parseErr != nil || !s.isHello(named) {
		return record{}, err
	}
	return s.makeHello(ctx, named)
}
