package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// LoadDir takes in the images of a directory: an OCI layout, or archives and
// OCI layouts side by side. What was taken in before and has not changed is
// left alone, unless an image of it is gone. What is bad does not keep the rest
// from being loaded.
func (s *Store) LoadDir(ctx context.Context, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	if !fi.IsDir() {
		return s.loadFile(ctx, path)
	}
	if isLayout(path) {
		return s.loadLayout(ctx, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := filepath.Join(path, e.Name())
		switch {
		case isLayout(p):
			errs = append(errs, s.loadLayout(ctx, p))
		case e.Type().IsRegular() && isArchive(e.Name()), e.Type()&fs.ModeSymlink != 0 && isArchive(e.Name()):
			errs = append(errs, s.loadFile(ctx, p))
		}
	}
	return errors.Join(errs...)
}

func isLayout(path string) bool {
	_, err := os.Stat(filepath.Join(path, "oci-layout"))
	return err == nil
}

func isArchive(name string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

func (s *Store) loadFile(ctx context.Context, path string) error {
	return s.loadOnce(ctx, path, path, func(b *bundle) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return b.readArchive(ctx, f, s.config.Limits)
	})
}

func (s *Store) loadLayout(ctx context.Context, path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	defer root.Close()
	return s.loadOnce(ctx, path, filepath.Join(path, "index.json"), func(b *bundle) error {
		b.root = root
		return nil
	})
}

// loadOnce loads a path unless it was loaded before: then file, which stands
// for all of it, has not changed and all images are on record.
func (s *Store) loadOnce(ctx context.Context, path, file string, fill func(*bundle) error) error {
	fi, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	mark := fmt.Sprintf("%d@%d", fi.Size(), fi.ModTime().UnixNano())
	if s.state.Load().seen(path, mark) {
		return nil
	}
	note := func(st *state, targets []digest.Digest) {
		var seen strings.Builder
		seen.WriteString(mark)
		for _, t := range targets {
			seen.WriteString(" " + t.String())
		}
		st.Seen[path] = seen.String()
	}
	if err := s.load(ctx, newTeller(nil), note, fill); err != nil {
		return fmt.Errorf("load images of %s: %w", path, err)
	}
	s.log.InfoContext(ctx, "loaded images", "path", path)
	return nil
}

func (st *state) seen(path, mark string) bool {
	fields := strings.Fields(st.Seen[path])
	if len(fields) == 0 || fields[0] != mark {
		return false
	}
	for _, f := range fields[1:] {
		if _, ok := st.Images[digest.Digest(f)]; !ok {
			return false
		}
	}
	return true
}
