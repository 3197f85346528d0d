// Package content is the node's store of blobs: manifests, configs and layers
// as they came, each under its own digest.
//
// A blob is there whole and verified, or it is not there: it is written to tmp,
// its digest and size are checked, it is synced and then renamed into place.
// What a crash leaves in tmp is wiped at the next Open. The package knows
// nothing of images and never decides what may go; it only refuses to remove
// what somebody holds a [Lease] on.
package content

import (
	// The digests of this store.
	_ "crypto/sha256"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Store is a directory of blobs. It is safe for concurrent use by one process.
type Store struct {
	dir string

	mu     sync.Mutex
	leased map[digest.Digest]int
}

// Open makes the store's directories below dir and empties its tmp.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, leased: map[digest.Digest]int{}}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("wipe temporary blobs: %w", err)
	}
	for _, d := range []string{s.tmp(), s.blobs()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open content store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) tmp() string   { return filepath.Join(s.dir, "tmp", "blobs") }
func (s *Store) blobs() string { return filepath.Join(s.dir, "blobs", "sha256") }

// path is where d is kept. Only a valid SHA-256 digest has a path, so no path
// made here leaves the store.
func (s *Store) path(d digest.Digest) (string, error) {
	if err := Check(d); err != nil {
		return "", err
	}
	return filepath.Join(s.blobs(), d.Encoded()), nil
}

// Check says whether d is a digest that the store can hold.
func Check(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.100q: only sha256 is known: %w", string(d), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Has says whether the blob is in the store.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.Size(d)
	return err == nil
}

// Size is the size of a blob in bytes.
func (s *Store) Size(d digest.Digest) (int64, error) {
	p, err := s.path(d)
	if err != nil {
		return 0, err
	}
	fi, err := os.Stat(p)
	if err != nil {
		return 0, missing(d, err)
	}
	return fi.Size(), nil
}

// Reader opens a blob. What is read is not verified again.
func (s *Store) Reader(d digest.Digest) (*os.File, error) {
	p, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, missing(d, err)
	}
	return f, nil
}

// Bytes reads a blob of at most limit bytes and verifies it.
func (s *Store) Bytes(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.Reader(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read blob %s: larger than %d bytes: %w", d, limit, errdefs.ErrInvalidArgument)
	}
	if got := digest.FromBytes(b); got != d {
		return nil, fmt.Errorf("read blob %s: its content is %s: %w", d, got, errdefs.ErrDataLoss)
	}
	return b, nil
}

// All are the digests and sizes of all blobs.
func (s *Store) All() iter.Seq2[digest.Digest, int64] {
	return func(yield func(digest.Digest, int64) bool) {
		entries, err := os.ReadDir(s.blobs())
		if err != nil {
			return
		}
		for _, e := range entries {
			fi, err := e.Info()
			d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			if err != nil || Check(d) != nil {
				continue
			}
			if !yield(d, fi.Size()) {
				return
			}
		}
	}
}

// Remove removes a blob that nobody holds a lease on and tells its size; a
// blob that is leased or not there is left alone and counts 0.
func (s *Store) Remove(d digest.Digest) (int64, error) {
	p, err := s.path(d)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leased[d] > 0 {
		return 0, nil
	}
	fi, err := os.Stat(p)
	if err != nil {
		return 0, nil
	}
	if err := os.Remove(p); err != nil {
		return 0, fmt.Errorf("remove blob %s: %w", d, err)
	}
	return fi.Size(), nil
}

// missing is the error of opening d.
func missing(d digest.Digest, err error) error {
	if os.IsNotExist(err) {
		return fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	return fmt.Errorf("open blob %s: %w", d, err)
}

// syncDir makes the renames into a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
