package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/store/object"
)

// Outcome is how a blob came to be in a repository.
type Outcome int

// The outcomes.
const (
	Uploaded Outcome = iota
	Exists
	Mounted
)

// HasBlob says whether the repository has a blob.
func (r *Repository) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	found := false
	err := r.each(ctx, func(e *endpoint, client *http.Client) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, e.url("blobs", d.String()).String(), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		found = resp.StatusCode == http.StatusOK
		return transport.CheckError(resp, http.StatusOK, http.StatusNotFound)
	})
	return found, r.explainPush(err)
}

// PutBlob writes a blob, or has it mounted from another repository of the same
// registry. open is called for each attempt.
func (r *Repository) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) (Outcome, error) {
	outcome := Uploaded
	err := r.each(ctx, func(e *endpoint, client *http.Client) error {
		to, mounted, err := start(ctx, e, client, desc.Digest, from)
		if mounted {
			outcome = Mounted
		}
		if err != nil || mounted {
			return err
		}
		src, err := open()
		if err != nil {
			return err
		}
		defer src.Close()
		q := to.Query()
		q.Set("digest", desc.Digest.String())
		to.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), src)
		if err != nil {
			return err
		}
		req.ContentLength = desc.Size
		if desc.Size == 0 {
			req.Body = http.NoBody
		}
		req.Header.Set("Content-Type", "application/octet-stream")
		return do(client, req, http.StatusCreated)
	})
	return outcome, r.explainPush(err)
}

// start begins an upload, unless the registry mounts the blob.
func start(ctx context.Context, e *endpoint, client *http.Client, d digest.Digest, from string) (*url.URL, bool, error) {
	u := e.url("blobs", "uploads", "")
	if from != "" {
		u.RawQuery = url.Values{"mount": {d.String()}, "from": {from}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if err = transport.CheckError(resp, http.StatusAccepted, http.StatusCreated); err != nil {
		return nil, false, err
	}
	if resp.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return nil, false, fmt.Errorf("start upload: %w", err)
	}
	return to, false, nil
}

// PutManifest writes a manifest under a tag or its digest.
func (r *Repository) PutManifest(ctx context.Context, ref, mediaType string, body []byte) error {
	err := r.each(ctx, func(e *endpoint, client *http.Client) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, e.url("manifests", ref).String(), bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", mediaType)
		return do(client, req, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	})
	return r.explainPush(err)
}

func do(client *http.Client, req *http.Request, codes ...int) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, codes...)
}

// explainPush gives errors of pushing the texts that users know.
func (r *Repository) explainPush(err error) error {
	if err == nil {
		return nil
	}
	if denied(err) {
		return object.Errorf(errdefs.ErrPermissionDenied,
			"push access denied for %s: denied: requested access to the resource is denied", reference.FamiliarName(r.named))
	}
	return fmt.Errorf("push to %s: %w", reference.FamiliarName(r.named), err)
}
