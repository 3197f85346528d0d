package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"skep/exec/images"
	"skep/store/object"
)

// answerWait is how long the manager may take until a blob begins: it may have
// to ask several nodes.
const answerWait = 2 * time.Minute

// lookupWait is how long the manager may take to say what a name means.
const lookupWait = 5 * time.Second

// ClientConfig is what a Client needs. Both reach the manager that leads; the
// error is of the kind unavailable when there is none, and not found when this
// node has no swarm.
type ClientConfig struct {
	// Do sends a request whose URL is only a path.
	Do func(ctx context.Context, req *http.Request) (*http.Response, error)
	// Lookup sends POST /lookup.
	Lookup func(ctx context.Context, q *Question) (*Answer, error)
}

// Client is the other nodes' images.
type Client struct{ cfg ClientConfig }

var _ images.Source = (*Client)(nil)

// NewClient is a client.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Resolve asks the manager what a name means.
func (c *Client) Resolve(ctx context.Context, name string) (images.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	a, err := c.cfg.Lookup(ctx, &Question{Name: name})
	if err != nil {
		return images.Found{}, err
	}
	d := a.Image.Descriptor
	if err := d.Digest.Validate(); err != nil {
		return images.Found{}, fmt.Errorf("image %s: digest of its manifest: %w", name, err)
	}
	return images.Found{Descriptor: d, Platforms: a.Image.Platforms, Vouched: a.Vouched}, nil
}

// Blob asks the manager for a blob.
func (c *Client) Blob(ctx context.Context, q images.Query) (images.Part, error) {
	if err := errors.Join(q.Image.Validate(), q.Digest.Validate()); err != nil {
		return images.Part{}, object.Errorf(errdefs.ErrInvalidArgument, "blob %q of image %q: %v", q.Digest, q.Image, err)
	}
	query := url.Values{"image": {q.Image.String()}, "avoid": q.Avoid}
	u := url.URL{Path: "/blobs/" + q.Digest.String(), RawQuery: query.Encode()}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(answerWait, func() {
		cancel(object.Errorf(errdefs.ErrUnavailable, "the manager does not answer"))
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return images.Part{}, err
	}
	if q.Offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", q.Offset))
	}
	resp, err := c.cfg.Do(ctx, req)
	if !timer.Stop() && err == nil {
		err = errors.Join(context.Cause(ctx), resp.Body.Close())
	}
	if err != nil {
		cancel(nil)
		return images.Part{}, fmt.Errorf("get blob %s: %w", q.Digest, err)
	}
	part, err := partOf(resp, q)
	if err != nil {
		err = errors.Join(err, resp.Body.Close())
		cancel(nil)
		return images.Part{}, err
	}
	part.Body = &body{ReadCloser: resp.Body, end: func() { cancel(nil) }}
	return part, nil
}

// body ends the request with its body.
type body struct {
	io.ReadCloser
	end func()
}

func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// partOf reads what an answer says of the blob.
func partOf(resp *http.Response, q images.Query) (images.Part, error) {
	part := images.Part{From: resp.Header.Get(holderHeader)}
	switch {
	case resp.StatusCode == http.StatusPartialContent && q.Offset > 0:
		start, size, err := contentRange(resp.Header.Get("Content-Range"))
		if err != nil || start != q.Offset {
			return part, fmt.Errorf("get blob %s: the answer is another part of it", q.Digest)
		}
		part.Size = size
		return part, nil
	case resp.StatusCode == http.StatusOK && q.Offset == 0:
		part.Size = resp.ContentLength
		return part, nil
	case resp.StatusCode == http.StatusOK: // ranges are not known there
		part.Size = resp.ContentLength
		_, err := io.CopyN(io.Discard, resp.Body, q.Offset)
		return part, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil || len(text) == 0 {
		text = []byte(resp.Status)
	}
	return part, object.Errorf(kindOf(resp.StatusCode), "get blob %s: %s", q.Digest, strings.TrimSpace(string(text)))
}

func kindOf(status int) error {
	switch status {
	case http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable:
		return errdefs.ErrNotFound
	case http.StatusForbidden, http.StatusUnauthorized:
		return errdefs.ErrPermissionDenied
	case http.StatusBadRequest:
		return errdefs.ErrInvalidArgument
	case http.StatusMisdirectedRequest, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// contentRange reads "bytes first-last/size".
func contentRange(s string) (first, size int64, err error) {
	span, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	from, _, dashed := strings.Cut(span, "-")
	if !ok || !dashed {
		return 0, 0, fmt.Errorf("content range %.100q", s)
	}
	if first, err = strconv.ParseInt(from, 10, 64); err != nil {
		return 0, 0, err
	}
	size, err = strconv.ParseInt(total, 10, 64)
	return first, size, err
}
