package images

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/content"
	"skep/exec/layers"
	"skep/store/object"
)

// origin is where an image comes from: a registry's repository or other nodes.
type origin interface {
	// Manifest reads a manifest or an index by its tag or digest.
	Manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error)
	// Bytes reads a small blob and verifies it.
	Bytes(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Blob opens a blob. The reader copes with what breaks off; it does not verify.
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// hasty is an origin that must answer soon, because another knows the image.
type hasty struct {
	origin
	limit time.Duration
}

func (h hasty) Manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	return h.origin.Manifest(ctx, ref)
}

const (
	// peerAttempts is how often one blob is asked for without progress.
	peerAttempts = 6
	// peerIdle is how long a transfer may stand still before another node is asked.
	peerIdle = 20 * time.Second
)

// peers is the other nodes as the origin of one image.
type peers struct {
	source Source
	image  digest.Digest

	mu sync.Mutex
	// liars are nodes that gave wrong bytes for a blob; givers are those that
	// the last transfer of it came from. Both guarded by mu.
	liars, givers map[digest.Digest][]string
}

func newPeers(source Source, image digest.Digest) *peers {
	return &peers{source: source, image: image, liars: map[digest.Digest][]string{}, givers: map[digest.Digest][]string{}}
}

// Manifest reads by digest; a tag means the image itself.
func (p *peers) Manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	d := digest.Digest(ref)
	if d.Validate() != nil {
		d = p.image
	}
	body, err := p.Bytes(ctx, ocispec.Descriptor{Digest: d, Size: -1})
	return body, ocispec.Descriptor{MediaType: mediaTypeOf(body), Digest: d, Size: int64(len(body))}, err
}

func (p *peers) Bytes(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	for {
		body, err := p.bytes(ctx, desc)
		if err == nil || !p.blame(desc.Digest, err) {
			return body, err
		}
	}
}

func (p *peers) bytes(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	r, err := p.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxDocument {
		return nil, badImage("blob %s is larger than %d bytes", desc.Digest, maxDocument)
	}
	if got := digest.FromBytes(body); got != desc.Digest {
		return nil, object.Errorf(content.ErrMismatch, "blob %s: its content is %s", desc.Digest, got)
	}
	return body, nil
}

func (p *peers) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	p.mu.Lock()
	p.givers[desc.Digest] = nil
	p.mu.Unlock()
	t := &transfer{ctx: ctx, peers: p, digest: desc.Digest, size: desc.Size}
	if err := t.open(); err != nil {
		return nil, err
	}
	return t, nil
}

// blame notes who gave a blob that was refused, and says whether to ask again.
// If it came from several nodes, the last one may be honest.
func (p *peers) blame(d digest.Digest, err error) bool {
	if !errors.Is(err, content.ErrMismatch) && !errors.Is(err, layers.ErrRefused) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	givers := p.givers[d]
	if len(givers) > 1 {
		givers = givers[:len(givers)-1]
	}
	p.liars[d] = append(p.liars[d], givers...)
	p.givers[d] = nil
	return len(givers) > 0
}

// transfer is the body of a blob, from as many nodes as it takes.
type transfer struct {
	ctx    context.Context //nolint:containedctx // of the call that opened the blob, which ends its reading
	peers  *peers
	digest digest.Digest
	size   int64 // negative until it is known

	n      int64 // bytes read
	from   string
	failed []string // nodes that broke off since there was progress
	broken int      // how often that was
	body   io.ReadCloser
	cancel context.CancelFunc
	timer  *time.Timer
}

// open asks for the blob from the n-th byte on until somebody gives it.
func (t *transfer) open() error {
	for {
		err := t.ask()
		if err == nil || t.ctx.Err() != nil {
			return err
		}
		switch {
		case errdefs.IsNotFound(err) && len(t.failed) > 0:
			t.failed = nil // those that broke off may be back
		case errdefs.IsNotFound(err):
			return err
		}
		if t.broken++; t.broken >= peerAttempts {
			return err
		}
		if werr := t.wait(); werr != nil {
			return werr
		}
	}
}

// wait is a pause that is longer each time.
func (t *transfer) wait() error {
	timer := time.NewTimer(100 * time.Millisecond << min(t.broken, 5))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

func (t *transfer) ask() error {
	t.peers.mu.Lock()
	avoid := slices.Concat(t.peers.liars[t.digest], t.failed)
	t.peers.mu.Unlock()
	ctx, cancel := context.WithCancel(t.ctx)
	part, err := t.peers.source.Blob(ctx, Query{Image: t.peers.image, Digest: t.digest, Offset: t.n, Avoid: avoid})
	if err != nil {
		cancel()
		return err
	}
	if t.size < 0 {
		t.size = part.Size
	}
	t.peers.mu.Lock()
	t.peers.givers[t.digest] = append(t.peers.givers[t.digest], part.From)
	t.peers.mu.Unlock()
	t.body, t.from, t.cancel = part.Body, part.From, cancel
	t.timer = time.AfterFunc(peerIdle, cancel)
	return nil
}

func (t *transfer) Read(p []byte) (int, error) {
	for {
		n, err := t.body.Read(p)
		t.n += int64(n)
		if n > 0 {
			t.broken, t.failed = 0, nil
			t.timer.Reset(peerIdle)
		}
		whole := err == io.EOF && t.n >= t.size
		if err == nil || whole || t.ctx.Err() != nil {
			return n, err
		}
		if n > 0 {
			return n, nil // the error comes again
		}
		t.stop()
		t.failed = append(t.failed, t.from)
		if t.broken++; t.broken >= peerAttempts {
			return 0, io.ErrUnexpectedEOF
		}
		if err := t.open(); err != nil {
			return 0, err
		}
	}
}

func (t *transfer) stop() {
	t.timer.Stop()
	t.cancel()
	_ = t.body.Close()
}

// Close ends the transfer.
func (t *transfer) Close() error {
	t.stop()
	return nil
}
