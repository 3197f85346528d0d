package images

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"skep/exec/layers"
)

// sweep removes blobs and layers that no image needs and nobody holds a lease
// on, and tells how many bytes that freed.
func (s *Store) sweep() (int64, error) {
	s.write.Lock()
	defer s.write.Unlock()
	live, err := s.live(s.state.Load())
	if err != nil {
		return 0, fmt.Errorf("sweep images: %w", err)
	}
	var freed int64
	var errs []error
	for d := range s.blobs.All() {
		if live[d] {
			continue
		}
		n, err := s.blobs.Remove(d)
		freed += n
		errs = append(errs, err)
	}
	for d := range s.layers.All() {
		if live[d] {
			continue
		}
		info, _ := s.layers.Info(d) // only for its size
		removed, err := s.blobs.Unless(d, func() error { return s.layers.Remove(d) })
		if removed && err == nil {
			freed += info.Size
		}
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

// live are the digests of all content of all images.
func (s *Store) live(st *state) (map[digest.Digest]bool, error) {
	live := map[digest.Digest]bool{}
	for target, rec := range st.Images {
		live[target], live[rec.Manifest], live[rec.Config] = true, true, true
		img, err := s.open(rec)
		if err != nil {
			return nil, err
		}
		for _, l := range img.manifest.Layers {
			live[l.Digest] = true
		}
		diffIDs := img.config.RootFS.DiffIDs
		live[layers.CoverID(diffIDs)] = true
		for _, d := range diffIDs {
			live[d] = true
			if info, err := s.layers.Info(d); err == nil && info.Blob != "" {
				live[info.Blob] = true
			}
		}
	}
	return live, nil
}
