package images

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// state is all that the store knows besides content. A state is immutable once
// it is current.
type state struct {
	// Names maps canonical names (docker.io/library/nginx:latest, or with
	// @sha256:…) to targets.
	Names map[string]digest.Digest
	// Images are by target.
	Images map[digest.Digest]record
	// Seen are the archives that LoadDir loaded, so that it loads each once.
	Seen map[string]string `json:",omitempty"`

	replaced chan struct{} // closed when another state is current
}

// record is one image.
type record struct {
	// Target is what names refer to: a manifest or an index.
	Target ocispec.Descriptor
	// Manifest is the manifest that runs here; the target itself unless that
	// is an index.
	Manifest digest.Digest
	// Config is the digest of the config, which is the image's ID.
	Config digest.Digest
	Tagged time.Time
}

func (s *Store) statePath() string { return filepath.Join(s.config.Dir, "refs.json") }

func readState(path string) (*state, error) {
	st := &state{}
	b, err := os.ReadFile(path)
	switch {
	case os.IsNotExist(err):
	case err != nil:
		return nil, fmt.Errorf("read image names: %w", err)
	default:
		if err := json.Unmarshal(b, st); err != nil {
			return nil, fmt.Errorf("read image names %s: %w", path, err)
		}
	}
	return st.clone(), nil
}

// clone is a copy that may be changed.
func (st *state) clone() *state {
	c := &state{
		Names: maps.Clone(st.Names), Images: maps.Clone(st.Images), Seen: maps.Clone(st.Seen),
		replaced: make(chan struct{}),
	}
	if c.Names == nil {
		c.Names = map[string]digest.Digest{}
	}
	if c.Images == nil {
		c.Images = map[digest.Digest]record{}
	}
	if c.Seen == nil {
		c.Seen = map[string]string{}
	}
	return c
}

// change makes a new state and writes it; change sees the current one and no
// other change comes between.
func (s *Store) change(change func(*state) error) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.changeLocked(change)
}

func (s *Store) changeLocked(change func(*state) error) error {
	st := s.state.Load().clone()
	if err := change(st); err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := writeFile(s.statePath(), b); err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	close(s.state.Swap(st).replaced)
	return nil
}

// writeFile replaces a file at once and durably.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".refs-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone when it was renamed
	defer f.Close()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
