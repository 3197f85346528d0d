package images

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/content"
)

// unpackBlob unpacks a layer from its blob in the store.
func (s *Store) unpackBlob(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, step func(int64)) error {
	return s.layers.Unpack(ctx, diffID, desc.Digest, func() (io.ReadCloser, error) {
		f, err := s.blobs.Reader(desc.Digest)
		if err != nil {
			return nil, err
		}
		return &stepReader{ReadCloser: f, step: step}, nil
	})
}

// unpackStream unpacks a layer while its blob arrives, and keeps the blob. The
// blob is verified before the layer is put in place.
func (s *Store) unpackStream(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor,
	open func(context.Context) (io.ReadCloser, error), step func(int64),
) error {
	return s.layers.Unpack(ctx, diffID, desc.Digest, func() (io.ReadCloser, error) {
		src, err := open(ctx)
		if err != nil {
			return nil, err
		}
		w, err := s.blobs.Writer(desc.Digest, desc.Size)
		if err != nil {
			_ = src.Close()
			return nil, err
		}
		return &tee{src: src, w: w, step: step}, nil
	})
}

// tee writes what is read through it into a blob. At the end of the source the
// blob is verified: a bad one makes the last Read fail.
type tee struct {
	src  io.ReadCloser
	w    *content.Writer
	step func(int64)
	err  error
}

func (t *tee) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.src.Read(p)
	if n > 0 {
		if _, werr := t.w.Write(p[:n]); werr != nil {
			t.err = werr
			return 0, werr
		}
		if t.step != nil {
			t.step(int64(n))
		}
	}
	if err == io.EOF { //nolint:errorlint // a wrapped EOF is not the end
		if _, _, cerr := t.w.Commit(); cerr != nil {
			err = cerr
		}
	}
	t.err = err
	return n, err
}

func (t *tee) Close() error {
	_ = t.w.Close()
	return t.src.Close()
}

// keepBlob stores a blob without unpacking it.
func (s *Store) keepBlob(ctx context.Context, desc ocispec.Descriptor, src io.Reader, step func(int64)) error {
	w, err := s.blobs.Writer(desc.Digest, desc.Size)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err = io.Copy(w, &stepReader{ReadCloser: io.NopCloser(&ctxReader{ctx, src}), step: step}); err != nil {
		return err
	}
	_, _, err = w.Commit()
	return err
}

// stepReader tells how many bytes were read.
type stepReader struct {
	io.ReadCloser
	step func(int64)
}

func (r *stepReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.step != nil && n > 0 {
		r.step(int64(n))
	}
	return n, err
}

// layerBlob opens the blob of a layer of an image. When the blob itself is not
// here, that of another image with the same layer may be, and skep/hello's is
// made from the binary; the descriptor is of what was opened.
func (s *Store) layerBlob(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor) (*os.File, ocispec.Descriptor, error) {
	if f, err := s.blobs.Reader(desc.Digest); err == nil {
		return f, desc, nil
	}
	info, err := s.layers.Info(diffID)
	if err != nil {
		return nil, desc, err
	}
	if info.Blob != "" {
		return s.otherBlob(info.Blob, desc)
	}
	if err = s.keepHello(ctx, diffID); err != nil {
		return nil, desc, err
	}
	f, err := s.blobs.Reader(desc.Digest)
	return f, desc, err
}

// otherBlob opens a layer in another form than the descriptor's.
func (s *Store) otherBlob(d digest.Digest, desc ocispec.Descriptor) (*os.File, ocispec.Descriptor, error) {
	f, err := s.blobs.Reader(d)
	if err != nil {
		return nil, desc, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, desc, errors.Join(err, f.Close())
	}
	desc.Digest, desc.Size = d, fi.Size()
	if desc.MediaType, err = layerType(f); err != nil {
		return nil, desc, errors.Join(err, f.Close())
	}
	return f, desc, nil
}

// layerType is the media type of a layer by its first bytes; f stays at its start.
func layerType(f *os.File) (string, error) {
	magic := make([]byte, 4)
	n, err := f.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	return layerTypeOf(magic[:n]), nil
}

func layerTypeOf(magic []byte) string {
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return ocispec.MediaTypeImageLayerGzip
	case string(magic) == "\x28\xb5\x2f\xfd":
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}
