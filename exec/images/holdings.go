package images

import (
	"context"
	"errors"
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
	// blobs are all blobs of the holdings. Those that can be made of an
	// unpacked layer have its diffID.
	blobs map[digest.Digest]digest.Digest
}

func (s *Store) shelf() *shelf {
	st := s.state.Load()
	if h := s.shelved.Load(); h != nil && h.of == st {
		return h
	}
	h := &shelf{of: st, blobs: map[digest.Digest]digest.Digest{}}
	for _, target := range st.sortedTargets() {
		s.put(h, st.Images[target])
	}
	s.shelved.Store(h)
	return h
}

// put puts an image on the shelf if it is whole.
func (s *Store) put(h *shelf, rec record) {
	img, err := s.open(rec)
	if err != nil {
		return
	}
	target, err := s.local(rec)
	if err != nil {
		return
	}
	makeable := make([]digest.Digest, len(img.manifest.Layers))
	for i, l := range img.manifest.Layers {
		diffID := img.config.RootFS.DiffIDs[i]
		switch {
		case s.canMake(diffID, l.Digest):
			makeable[i] = diffID
		case !s.blobs.Has(l.Digest):
			return
		}
	}
	for i, l := range img.manifest.Layers {
		h.blobs[l.Digest] = makeable[i]
	}
	for _, d := range []digest.Digest{rec.Target.Digest, rec.Manifest, rec.Config} {
		h.blobs[d] = ""
	}
	names := slices.DeleteFunc(h.of.names(rec.Target.Digest), func(key string) bool { return strings.Contains(key, "@") })
	h.holdings = append(h.holdings, Holding{Target: rec.Target, Names: names, Platforms: target.Platforms})
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
