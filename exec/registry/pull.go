package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/store/object"
)

// maxManifest is the largest manifest that is read.
const maxManifest = 4 << 20

// idle is how long a blob may stand still, and a manifest may take, before it
// is asked for again.
const idle = time.Minute

// Manifest reads a manifest or an index by its tag or digest.
func (r *Repository) Manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	var body []byte
	var desc ocispec.Descriptor
	err := r.each(ctx, func(e *endpoint, client *http.Client) error {
		limited, cancel := context.WithTimeout(ctx, idle)
		defer cancel()
		req, err := http.NewRequestWithContext(limited, http.MethodGet, e.url("manifests", ref).String(), nil)
		if err != nil {
			return err
		}
		req.Header.Set("Accept", strings.Join([]string{
			ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
			"application/vnd.docker.distribution.manifest.list.v2+json",
			"application/vnd.docker.distribution.manifest.v2+json",
		}, ", "))
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err = transport.CheckError(resp, http.StatusOK); err != nil {
			return err
		}
		if body, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1)); err != nil {
			return err
		}
		if len(body) > maxManifest {
			return object.Errorf(errdefs.ErrInvalidArgument, "manifest %s is larger than %d bytes", ref, maxManifest)
		}
		mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
		desc = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
		// A registry's own word for the digest is not asked for: by digest
		// this is the proof, and by tag there is nothing to compare with.
		if want := digest.Digest(ref); want.Validate() == nil && want != desc.Digest {
			return object.Errorf(errdefs.ErrDataLoss, "manifest %s: its content is %s", want, desc.Digest)
		}
		return nil
	})
	if err != nil {
		return nil, ocispec.Descriptor{}, r.explain(ref, err)
	}
	return body, desc, nil
}

// Bytes reads a small blob and verifies it.
func (r *Repository) Bytes(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "blob %s is larger than %d bytes", desc.Digest, maxManifest)
	}
	blob, err := r.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	b, err := io.ReadAll(io.LimitReader(blob, desc.Size+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	if got := digest.FromBytes(b); got != desc.Digest {
		return nil, object.Errorf(errdefs.ErrDataLoss, "blob %s: its content is %s", desc.Digest, got)
	}
	return b, nil
}

// Blob opens a blob. The reader asks again for what is missing when it breaks
// off; it does not verify.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, r: r, desc: desc}
	if err := b.open(); err != nil {
		return nil, r.explain(desc.Digest.String(), err)
	}
	return b, nil
}

// blob is the body of a blob over as many responses as it takes.
type blob struct {
	ctx  context.Context //nolint:containedctx // of the call that opened the blob, which ends its reading
	r    *Repository
	desc ocispec.Descriptor

	n      int64 // bytes read
	broken int   // how often it broke off since there was progress
	body   io.ReadCloser
	cancel context.CancelFunc
	timer  *time.Timer
}

// open asks for the blob from the n-th byte on.
func (b *blob) open() error {
	return b.r.each(b.ctx, func(e *endpoint, client *http.Client) error {
		ctx, cancel := context.WithCancel(b.ctx)
		body, err := b.request(ctx, e, client)
		if err != nil {
			cancel()
			return err
		}
		b.body, b.cancel = body, cancel
		b.timer = time.AfterFunc(idle, cancel)
		return nil
	})
}

func (b *blob) request(ctx context.Context, e *endpoint, client *http.Client) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url("blobs", b.desc.Digest.String()).String(), nil)
	if err != nil {
		return nil, err
	}
	if b.n > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.n, b.desc.Size-1))
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	if b.n > 0 && resp.StatusCode == http.StatusOK { // ranges are not known there
		if _, err := io.CopyN(io.Discard, resp.Body, b.n); err != nil {
			_ = resp.Body.Close()
			return nil, err
		}
	}
	return resp.Body, nil
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.n += int64(n)
		if n > 0 {
			b.broken = 0
			b.timer.Reset(idle)
		}
		cut := err == io.EOF && b.n < b.desc.Size
		if err == nil || (err == io.EOF && !cut) || b.ctx.Err() != nil || b.broken >= attempts {
			if cut {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
		if n > 0 {
			return n, nil // the error comes again
		}
		b.broken++
		b.stop()
		if werr := wait(b.ctx, b.broken); werr != nil {
			return 0, werr
		}
		if err := b.open(); err != nil {
			return 0, err
		}
	}
}

func (b *blob) stop() {
	b.timer.Stop()
	b.cancel()
	_ = b.body.Close()
}

// Close ends the transfer.
func (b *blob) Close() error {
	b.stop()
	return nil
}
