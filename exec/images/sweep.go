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
	freed, files, err := s.detach()
	errs := []error{err}
	for _, remove := range files {
		errs = append(errs, remove())
	}
	return freed, errors.Join(errs...)
}

// detach is sweep without the deletion of layers' files, which takes long.
func (s *Store) detach() (freed int64, files []func() error, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	live, err := s.live(s.state.Load())
	if err != nil {
		return 0, nil, fmt.Errorf("sweep images: %w", err)
	}
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
		_, err := s.blobs.Unless(d, func() error {
			remove, err := s.layers.Detach(d)
			if err == nil {
				files = append(files, remove)
				freed += info.Size
			}
			return err
		})
		errs = append(errs, err)
	}
	return freed, files, errors.Join(errs...)
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
