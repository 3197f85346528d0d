package content

import (
	"errors"
	"fmt"
	"hash"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// ErrMismatch is what a blob is refused with when the bytes are not those that
// their digest and size promise.
var ErrMismatch = errors.New("content does not match its digest")

// Write stores b.
func (s *Store) Write(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	if s.Has(d) {
		return d, nil
	}
	w, err := s.Writer(d, int64(len(b)))
	if err != nil {
		return "", err
	}
	defer w.Close()
	if _, err = w.Write(b); err != nil {
		return "", err
	}
	d, _, err = w.Commit()
	return d, err
}

// Writer is a blob that is being written. Close drops it unless Commit was called.
type Writer struct {
	s    *Store
	f    *os.File
	hash hash.Hash
	want digest.Digest
	size int64
	n    int64
}

// Writer starts a blob. An empty digest and a negative size mean that they are
// not known before.
func (s *Store) Writer(want digest.Digest, size int64) (*Writer, error) {
	if want != "" {
		if err := Check(want); err != nil {
			return nil, err
		}
	}
	f, err := os.CreateTemp(s.tmp(), "blob-*")
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return &Writer{s: s, f: f, hash: digest.SHA256.Hash(), want: want, size: size}, nil
}

// Write adds to the blob and refuses more than its size.
func (w *Writer) Write(p []byte) (int, error) {
	if w.size >= 0 && w.n+int64(len(p)) > w.size {
		return 0, w.mismatch(fmt.Sprintf("more than the expected %d bytes", w.size))
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.n += int64(n)
	return n, err
}

// Commit verifies the blob and puts it in its place.
func (w *Writer) Commit() (digest.Digest, int64, error) {
	if w.size >= 0 && w.n != w.size {
		return "", 0, w.mismatch(fmt.Sprintf("%d bytes instead of %d", w.n, w.size))
	}
	d := digest.NewDigest(digest.SHA256, w.hash)
	if w.want != "" && d != w.want {
		return "", 0, w.mismatch("its content is " + d.String())
	}
	p, err := w.s.path(d)
	if err != nil {
		return "", 0, err
	}
	if err := w.f.Sync(); err != nil {
		return "", 0, fmt.Errorf("sync blob %s: %w", d, err)
	}
	if err := os.Rename(w.f.Name(), p); err != nil {
		return "", 0, fmt.Errorf("store blob %s: %w", d, err)
	}
	if err := syncDir(w.s.blobs()); err != nil {
		return "", 0, fmt.Errorf("store blob %s: %w", d, err)
	}
	return d, w.n, nil
}

// Close ends the blob; without a Commit before it, nothing stays.
func (w *Writer) Close() error {
	_ = os.Remove(w.f.Name()) // gone when it was committed
	return w.f.Close()
}

func (w *Writer) mismatch(what string) error {
	return fmt.Errorf("blob %s: %s: %w: %w", label(w.want), what, ErrMismatch, errdefs.ErrDataLoss)
}

func label(d digest.Digest) string {
	if d == "" {
		return "of unknown digest"
	}
	return d.String()
}

// Digest is that of what was written so far: hold it before Commit, and the
// blob cannot be removed in between.
func (w *Writer) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.hash) }
