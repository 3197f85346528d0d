// Package layers keeps the unpacked file systems of image layers, ready to be
// the lower directories of an overlay mount.
//
// A layer is unpacked once per diffID (the digest of its uncompressed tar), by
// one caller at a time, and is immutable afterwards. It is there whole,
// verified and synced, or it is not there. The tar comes from strangers:
// unpacking runs in a thread whose root is the layer's directory, device nodes
// and links that climb out are refused, and size, ratio and number of entries
// are bounded. The package does not fetch layers, and does not mount them.
package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skep/exec/content"
)

// ErrRefused is what a layer is refused with that is not what it claims to be
// or that does what no image may.
var ErrRefused = errors.New("layer refused")

// Limits bound what one layer may cost.
type Limits struct {
	// Bytes is the largest uncompressed size.
	Bytes int64
	// Ratio is how many times larger than its compressed form a layer may
	// be. It is not looked at below Free bytes: an empty file compresses well.
	Ratio, Free int64
	// Entries is the largest number of files.
	Entries int
	// Window is the largest memory that a zstd frame may ask for.
	Window uint64
}

// DefaultLimits are for images of any size that is in use.
func DefaultLimits() Limits {
	return Limits{Bytes: 10 << 30, Ratio: 100, Free: 64 << 20, Entries: 2_000_000, Window: 128 << 20}
}

// Info is what is known of an unpacked layer.
type Info struct {
	// Size is the bytes of its files.
	Size int64
	// Blob is the blob it was unpacked from, if any.
	Blob digest.Digest `json:",omitempty"`
	// Implied are the directories ("." is the root) that the tar did not
	// describe but that its entries needed: their mode and owner mean nothing.
	Implied []string `json:",omitempty"`
}

// Store is a directory of unpacked layers.
type Store struct {
	dir    string
	limits Limits

	mu      sync.Mutex
	running map[digest.Digest]chan struct{} // closed when the unpacking ended
	bare    map[digest.Digest]bool          // chains, by CoverID, that need no cover
}

// Open makes the store's directories below dir and empties its tmp.
func Open(dir string, limits Limits) (*Store, error) {
	s := &Store{dir: dir, limits: limits, running: map[digest.Digest]chan struct{}{}, bare: map[digest.Digest]bool{}}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("wipe temporary layers: %w", err)
	}
	for _, d := range []string{s.tmp(), s.layers()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open layer store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) tmp() string    { return filepath.Join(s.dir, "tmp", "layers") }
func (s *Store) layers() string { return filepath.Join(s.dir, "layers", "sha256") }

func (s *Store) home(d digest.Digest) string { return filepath.Join(s.layers(), d.Encoded()) }

// Path is the root of an unpacked layer. The digest must be valid.
func (s *Store) Path(diffID digest.Digest) string {
	return filepath.Join(s.home(diffID), "fs")
}

// Has says whether the layer is unpacked.
func (s *Store) Has(diffID digest.Digest) bool {
	if content.Check(diffID) != nil {
		return false
	}
	_, err := os.Stat(s.Path(diffID))
	return err == nil
}

// Info tells of an unpacked layer.
func (s *Store) Info(diffID digest.Digest) (Info, error) {
	if err := content.Check(diffID); err != nil {
		return Info{}, err
	}
	b, err := os.ReadFile(filepath.Join(s.home(diffID), "info.json"))
	if os.IsNotExist(err) {
		return Info{}, fmt.Errorf("layer %s: %w", diffID, errdefs.ErrNotFound)
	}
	if err != nil {
		return Info{}, fmt.Errorf("read layer %s: %w", diffID, err)
	}
	var info Info
	if err := json.Unmarshal(b, &info); err != nil {
		return Info{}, fmt.Errorf("read layer %s: %w", diffID, err)
	}
	return info, nil
}

// All are the diffIDs of all unpacked layers.
func (s *Store) All() iter.Seq[digest.Digest] {
	return func(yield func(digest.Digest) bool) {
		entries, err := os.ReadDir(s.layers())
		if err != nil {
			return
		}
		for _, e := range entries {
			d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			if content.Check(d) == nil && !yield(d) {
				return
			}
		}
	}
}

// Make puts a layer in place unless it is there. While one caller fills it the
// others wait; when that one fails, the next tries. fill gets the layer's
// empty root directory, owned by root and of mode 0755.
func (s *Store) Make(ctx context.Context, diffID digest.Digest, fill func(root string) (Info, error)) error {
	if err := content.Check(diffID); err != nil {
		return err
	}
	for {
		if s.Has(diffID) {
			return nil
		}
		s.mu.Lock()
		done, busy := s.running[diffID]
		if !busy {
			done = make(chan struct{})
			s.running[diffID] = done
		}
		s.mu.Unlock()
		if busy {
			select {
			case <-done:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		defer func() {
			s.mu.Lock()
			delete(s.running, diffID)
			s.mu.Unlock()
			close(done)
		}()
		if s.Has(diffID) { // it ended between the look and the lock
			return nil
		}
		return s.make(diffID, fill)
	}
}

// make fills a directory in tmp and renames it.
func (s *Store) make(diffID digest.Digest, fill func(root string) (Info, error)) (err error) {
	tmp, err := os.MkdirTemp(s.tmp(), "layer-*")
	if err != nil {
		return fmt.Errorf("create layer: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	root := filepath.Join(tmp, "fs")
	if err = os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("create layer: %w", err)
	}
	if err = os.Chmod(root, 0o755); err != nil { // whatever the umask
		return fmt.Errorf("create layer: %w", err)
	}
	info, err := fill(root)
	if err != nil {
		return err
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "info.json"), b, 0o600); err != nil {
		return fmt.Errorf("record layer: %w", err)
	}
	if err := syncfs(tmp); err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	if err := os.Rename(tmp, s.home(diffID)); err != nil {
		return fmt.Errorf("store layer: %w", err)
	}
	return syncDir(s.layers())
}

// Detach takes a layer out of the store, at once and whole; the returned
// function deletes its files, which takes longer. The caller knows that nobody
// uses the layer.
func (s *Store) Detach(diffID digest.Digest) (func() error, error) {
	if err := content.Check(diffID); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(s.tmp(), "gone-*")
	if err != nil {
		return nil, fmt.Errorf("remove layer: %w", err)
	}
	if err := os.Rename(s.home(diffID), filepath.Join(tmp, "layer")); err != nil && !os.IsNotExist(err) {
		return nil, errors.Join(fmt.Errorf("remove layer: %w", err), os.Remove(tmp))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.bare)
	return func() error { return os.RemoveAll(tmp) }, nil
}

// syncfs writes everything of the file system that holds path to the disk:
// cheaper than an fsync for each of a layer's files.
func syncfs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
