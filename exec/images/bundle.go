package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"skep/exec/content"
	"skep/exec/layers"
)

// maxEntries is how many files an archive of images may hold.
const maxEntries = 100_000

// bundle is files that make up images: an archive or a directory. Files become
// blobs of the store, held by the lease; what turns out not to belong to an
// image is swept later.
type bundle struct {
	blobs *content.Store
	lease *content.Lease
	files map[string]digest.Digest
	// links are the symbolic and hard links of an archive.
	links map[string]string
	// root is the directory; nil for an archive, of which all is in files.
	root *os.Root
}

func (s *Store) newBundle(lease *content.Lease) *bundle {
	return &bundle{blobs: s.blobs, lease: lease, files: map[string]digest.Digest{}, links: map[string]string{}}
}

// readArchive takes in all files of a tar in one pass: none is written twice
// and nothing is compressed again. The tar may be compressed as a whole.
func (b *bundle) readArchive(ctx context.Context, r io.Reader, limits layers.Limits) error {
	limits.Bytes *= 8 // an archive holds several layers
	plain := layers.Plain(ctx, r, limits)
	defer plain.Close()
	tr := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badArchive(err)
		}
		if n > maxEntries {
			return badImage("archive of more than %d files", maxEntries)
		}
		if layers.Sparse(h) {
			return badImage("archive holds a sparse file: %q", h.Name)
		}
		name := clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			d, err := b.ingest(ctx, name, tr, h.Size)
			if err != nil {
				return fmt.Errorf("read %q: %w", name, err)
			}
			b.files[name] = d
		case tar.TypeSymlink:
			b.links[name] = clean(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			b.links[name] = clean(h.Linkname)
		}
	}
}

// badArchive is the error of reading an archive, which is the client's fault
// unless it was ended.
func badArchive(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return badImage("read archive: %v", err)
}

// clean is a name of an archive without what may stand before it.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// ingest stores a file. The name of a blob of an OCI layout is its digest.
func (b *bundle) ingest(ctx context.Context, name string, r io.Reader, size int64) (digest.Digest, error) {
	var want digest.Digest
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		want = digest.NewDigestFromEncoded(digest.SHA256, hex)
		if err := content.Check(want); err != nil {
			return "", err
		}
		b.lease.Hold(want)
		if b.blobs.Has(want) {
			return want, nil
		}
	}
	w, err := b.blobs.Writer(want, size)
	if err != nil {
		return "", err
	}
	defer w.Close()
	if _, err = io.Copy(w, &ctxReader{ctx, r}); err != nil {
		return "", err
	}
	b.lease.Hold(w.Digest())
	d, _, err := w.Commit()
	return d, err
}

// find is the blob that a file became.
func (b *bundle) find(ctx context.Context, name string) (digest.Digest, error) {
	name = clean(name)
	for range 10 { // links may form a ring
		if d, ok := b.files[name]; ok {
			return d, nil
		}
		if b.root != nil {
			return b.fromDir(ctx, name)
		}
		to, ok := b.links[name]
		if !ok {
			break
		}
		name = to
	}
	return "", badImage("the archive has no %q", name)
}

func (b *bundle) fromDir(ctx context.Context, name string) (digest.Digest, error) {
	f, err := b.root.Open(name)
	if err != nil {
		return "", badImage("%v", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "", badImage("%q is not a file", name)
	}
	d, err := b.ingest(ctx, name, f, fi.Size())
	if err != nil {
		return "", fmt.Errorf("read %q: %w", name, err)
	}
	b.files[name] = d
	return d, nil
}

// has says whether there is a file.
func (b *bundle) has(name string) bool {
	if b.root != nil {
		_, err := b.root.Stat(name)
		return err == nil
	}
	_, file := b.files[name]
	_, link := b.links[name]
	return file || link
}

// document reads a small file.
func (b *bundle) document(ctx context.Context, name string) ([]byte, error) {
	d, err := b.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return b.blobs.Bytes(d, maxDocument)
}

// blob makes sure that the store has a blob, from the bundle if it must be.
func (b *bundle) blob(ctx context.Context, d digest.Digest) error {
	b.lease.Hold(d)
	if b.blobs.Has(d) {
		return nil
	}
	_, err := b.find(ctx, "blobs/sha256/"+d.Encoded())
	return err
}
