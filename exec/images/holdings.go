package images

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/layers"
	"skep/store/object"
)

// Holding is an image that other nodes can have from this one: all its blobs
// are here, or can be made of what is here.
type Holding struct {
	// Target is what its names refer to: a manifest or an index.
	Target ocispec.Descriptor
	// Names are canonical and have a tag (docker.io/library/nginx:latest).
	Names []string
	// Platforms are those that the target is for.
	Platforms []ocispec.Platform
}

// Holdings are the images that other nodes can have from this one, by digest,
// and a channel that closes when that may have changed. What is returned must
// not be changed.
func (s *Store) Holdings() ([]Holding, <-chan struct{}) {
	h := s.shelf()
	return h.holdings, h.of.replaced
}

// Blob opens a blob of an image of Holdings; no other blob can be had.
func (s *Store) Blob(ctx context.Context, d digest.Digest) (*os.File, error) {
	diffID, ok := s.shelf().blobs[d]
	if !ok {
		return nil, object.Errorf(errdefs.ErrNotFound, "no image of this node has blob %s", d)
	}
	lease := s.blobs.Lease()
	defer lease.Release() // an open file stays readable
	lease.Hold(d)
	f, err := s.blobs.Reader(d)
	if err == nil || diffID == "" || !errors.Is(err, errdefs.ErrNotFound) {
		return f, err
	}
	if err = s.makeBlob(ctx, diffID); err != nil {
		return nil, err
	}
	return s.blobs.Reader(d)
}

// shelf is what other nodes can have while a state is current.
type shelf struct {
	of       *state
	holdings []Holding
	items    map[digest.Digest]item // by target
	// blobs are all blobs of the holdings. Those that can be made of an
	// unpacked layer have its diffID.
	blobs map[digest.Digest]digest.Digest
}

// item is an image that is whole. It stays so as long as it is on record.
type item struct {
	of        record
	platforms []ocispec.Platform
	blobs     map[digest.Digest]digest.Digest
}

func (s *Store) shelf() *shelf {
	st, before := s.state.Load(), s.shelved.Load()
	if before == nil {
		before = &shelf{}
	}
	if before.of == st {
		return before
	}
	h := &shelf{of: st, items: map[digest.Digest]item{}, blobs: map[digest.Digest]digest.Digest{}}
	for _, target := range st.sortedTargets() {
		rec := st.Images[target]
		i, ok := before.items[target]
		if !ok || i.of.Manifest != rec.Manifest || i.of.Config != rec.Config {
			if i, ok = s.item(rec); !ok {
				continue
			}
		}
		h.items[target] = i
		maps.Copy(h.blobs, i.blobs)
		names := slices.DeleteFunc(st.names(target), func(key string) bool { return strings.Contains(key, "@") })
		h.holdings = append(h.holdings, Holding{Target: rec.Target, Names: names, Platforms: i.platforms})
	}
	s.shelved.Store(h)
	return h
}

// item is an image for the shelf, if it is whole.
func (s *Store) item(rec record) (item, bool) {
	img, err := s.open(rec)
	if err != nil {
		return item{}, false
	}
	target, err := s.local(rec)
	if err != nil {
		return item{}, false
	}
	i := item{of: rec, platforms: target.Platforms, blobs: map[digest.Digest]digest.Digest{
		rec.Target.Digest: "", rec.Manifest: "", rec.Config: "",
	}}
	for n, l := range img.manifest.Layers {
		diffID := img.config.RootFS.DiffIDs[n]
		switch {
		case s.canMake(diffID, l.Digest):
			i.blobs[l.Digest] = diffID
		case s.blobs.Has(l.Digest):
			i.blobs[l.Digest] = ""
		default:
			return item{}, false
		}
	}
	return i, true
}

// canMake says whether a layer's blob can be made of what is here: it is not
// compressed, and the layer is the binary or is here in a compressed form.
func (s *Store) canMake(diffID, blob digest.Digest) bool {
	if diffID != blob {
		return false
	}
	info, err := s.layers.Info(diffID)
	return err == nil && (info.Blob == "" || s.blobs.Has(info.Blob))
}

// makeBlob makes the blob of a layer that is not compressed; one at a time.
func (s *Store) makeBlob(ctx context.Context, diffID digest.Digest) error {
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.blobs.Has(diffID) {
		return nil
	}
	info, err := s.layers.Info(diffID)
	if err != nil {
		return err
	}
	if info.Blob == "" {
		return s.keepHello(ctx, diffID)
	}
	f, err := s.blobs.Reader(info.Blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain := layers.Plain(ctx, f, s.config.Limits)
	defer plain.Close()
	return s.keepBlob(ctx, ocispec.Descriptor{Digest: diffID, Size: -1}, plain, nil)
}
