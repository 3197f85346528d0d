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
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/exec/images"
	"skep/store/object"
)

// answerWait is how long the manager may take until a blob begins: it may have
// to ask several nodes.
const answerWait = 2 * time.Minute

// lookupWait is how long it may take to find a manager that says what a name
// means; after a pause it is asked again.
const (
	lookupWait  = 5 * time.Second
	lookupPause = 300 * time.Millisecond
)

// ClientConfig is what a Client needs; all of it is required.
type ClientConfig struct {
	Dialer *control.Dialer
	// Leader is the manager to ask. The error is of the kind not found when this
	// node has no swarm.
	Leader func() (wire.Peer, error)
}

// Client is the other nodes' images.
type Client struct {
	cfg   ClientConfig
	slots chan struct{} // one in it for each blob that is being read
}

var _ images.Source = (*Client)(nil)

// NewClient is a client.
func NewClient(cfg ClientConfig) *Client {
	return &Client{cfg: cfg, slots: make(chan struct{}, maxPerNode)}
}

// Resolve asks the manager what a name means.
func (c *Client) Resolve(ctx context.Context, name string) (images.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	a, err := c.lookup(ctx, name)
	for errdefs.IsUnavailable(err) && pause(ctx, lookupPause) == nil {
		a, err = c.lookup(ctx, name)
	}
	if err != nil {
		return images.Found{}, err
	}
	d := a.Image.Descriptor
	if err := d.Digest.Validate(); err != nil {
		return images.Found{}, fmt.Errorf("image %s: digest of its manifest: %w", name, err)
	}
	return images.Found{Descriptor: d, Platforms: a.Image.Platforms, Vouched: a.Vouched}, nil
}

func (c *Client) lookup(ctx context.Context, name string) (a *Answer, err error) {
	err = c.ask(func(leader wire.Peer) (err error) {
		a, err = control.Call[Question, Answer](ctx, c.cfg.Dialer, leader, "/lookup", &Question{Name: name})
		return err
	})
	return a, err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask calls f with the leader, and again with the one that the first knows.
func (c *Client) ask(f func(leader wire.Peer) error) error {
	leader, err := c.cfg.Leader()
	if err != nil {
		return err
	}
	err = f(leader)
	if e, ok := errors.AsType[*control.NotLeader](err); ok && e.Leader.NodeID != "" {
		return f(e.Leader)
	}
	return err
}

// Blob asks the manager for a blob. It waits while many are being read.
func (c *Client) Blob(ctx context.Context, q images.Query) (images.Part, error) {
	if err := errors.Join(q.Image.Validate(), q.Digest.Validate()); err != nil {
		return images.Part{}, object.Errorf(errdefs.ErrInvalidArgument, "blob %q of image %q: %v", q.Digest, q.Image, err)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return images.Part{}, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	end := sync.OnceFunc(func() {
		cancel(nil)
		<-c.slots
	})
	timer := time.AfterFunc(answerWait, func() {
		cancel(object.Errorf(errdefs.ErrUnavailable, "the manager does not answer"))
	})
	part, err := c.blob(ctx, q)
	if !timer.Stop() && err == nil {
		err = errors.Join(context.Cause(ctx), part.Body.Close())
	}
	if err != nil {
		end()
		return images.Part{}, fmt.Errorf("get blob %s: %w", q.Digest, err)
	}
	part.Body = &body{ReadCloser: part.Body, end: end}
	return part, nil
}

func (c *Client) blob(ctx context.Context, q images.Query) (images.Part, error) {
	query := url.Values{"image": {q.Image.String()}, "avoid": q.Avoid}
	u := url.URL{Path: "/blobs/" + q.Digest.String(), RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return images.Part{}, err
	}
	if q.Offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", q.Offset))
	}
	var resp *http.Response
	err = c.ask(func(leader wire.Peer) (err error) {
		resp, err = c.cfg.Dialer.Do(ctx, leader, req) //nolint:bodyclose // the part's
		return err
	})
	if err != nil {
		return images.Part{}, err
	}
	part, err := partOf(resp, q)
	if err != nil {
		return part, errors.Join(err, resp.Body.Close())
	}
	part.Body = resp.Body
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
			return part, errors.New("the answer is another part of it")
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
	return part, fmt.Errorf("the manager answers %s", resp.Status)
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
