package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"skep/store/object"
)

// attempts is how often a request is tried at one endpoint.
const attempts = 4

// each calls f for the endpoints in their order until one succeeds, and again
// for the same one while its errors may pass. The last endpoint's error counts.
func (r *Repository) each(ctx context.Context, f func(*endpoint, *http.Client) error) error {
	var err error
	for _, e := range r.endpoints {
		err = retry(ctx, func() error {
			client, cerr := e.connect(ctx)
			if cerr != nil {
				return cerr
			}
			return f(e, client)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func retry(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || n >= attempts || ctx.Err() != nil || !passing(err) {
			return err
		}
		if err := wait(ctx, n); err != nil {
			return err
		}
	}
}

// wait is the pause before the n-th repetition: from 0.2 s, doubled, jittered.
func wait(ctx context.Context, n int) error {
	d := 200 * time.Millisecond << min(n-1, 5)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passing says whether an error may be gone at the next try.
func passing(err error) bool {
	if status, ok := errors.AsType[*transport.Error](err); ok {
		return status.Temporary()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsTemporary || dns.IsTimeout
	}
	var timeout net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// denied says whether the registry did not accept the credentials.
func denied(err error) bool {
	var status *transport.Error
	return errors.As(err, &status) &&
		(status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
}

// explain gives errors of registries the texts that users know.
func (r *Repository) explain(ref string, err error) error {
	var status *transport.Error
	if !errors.As(err, &status) {
		return err
	}
	familiar := reference.FamiliarName(r.named)
	code := transport.UnknownErrorCode
	if len(status.Errors) > 0 {
		code = status.Errors[0].Code
	}
	switch {
	case denied(err), code == transport.NameUnknownErrorCode:
		return object.Errorf(errdefs.ErrNotFound, "pull access denied for %s, repository does not exist or may require 'docker login': "+
			"denied: requested access to the resource is denied", familiar)
	case code == transport.ManifestUnknownErrorCode, status.StatusCode == http.StatusNotFound:
		sep := ":"
		if digest.Digest(ref).Validate() == nil {
			sep = "@"
		}
		return object.Errorf(errdefs.ErrNotFound, "manifest for %s%s%s not found: manifest unknown: manifest unknown", familiar, sep, ref)
	case status.StatusCode == http.StatusTooManyRequests:
		return object.Errorf(errdefs.ErrResourceExhausted, "toomanyrequests: %v", err)
	}
	return err
}
