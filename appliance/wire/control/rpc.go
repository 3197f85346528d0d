package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

const (
	// MaxBody is the size of a value that is sent or answered, in bytes.
	MaxBody = 2 << 20
	// maxRefusal is the size of an answer that is an error.
	maxRefusal = 64 << 10
	// sendTime is how long a caller may take to send its request's body, and
	// again to take the answer.
	sendTime = 10 * time.Second

	contentType = "application/cbor"
)

// NotLeader says that only the leader can do what was asked for. A handler that
// returns it makes the caller's error the same.
//
//nolint:errname // it reads as control.NotLeader
type NotLeader struct{ Leader wire.Peer } // zero: nobody leads

func (e *NotLeader) Error() string {
	if e.Leader.NodeID == "" {
		return "no manager leads the swarm"
	}
	return "this manager does not lead the swarm; " + e.Leader.NodeID + " does"
}

// Unwrap is its kind: another try may find the leader.
func (e *NotLeader) Unwrap() error { return errdefs.ErrUnavailable }

// Handle serves a call: one value in, one value out. The function must not keep
// req, which is the call's own.
func Handle[Req, Resp any](f func(ctx context.Context, from pki.Node, req *Req) (*Resp, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.SetReadDeadline(time.Now().Add(sendTime))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
		if err != nil {
			Refuse(w, object.Errorf(errdefs.ErrInvalidArgument, "read request: %w", err))
			return
		}
		req := new(Req)
		if err = object.Decode(body, req); err != nil {
			Refuse(w, object.Errorf(errdefs.ErrInvalidArgument, "decode request: %w", err))
			return
		}
		resp, err := f(r.Context(), Caller(r.Context()), req)
		if err != nil {
			Refuse(w, err)
			return
		}
		b, err := object.Encode(resp)
		if err != nil {
			Refuse(w, fmt.Errorf("encode answer: %w", err))
			return
		}
		_ = rc.SetWriteDeadline(time.Now().Add(sendTime))
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(b)
	})
}

// Call calls what [Handle] serves at path, without the prefix of the class.
func Call[Req, Resp any](ctx context.Context, d *Dialer, to wire.Peer, path string, req *Req) (*Resp, error) {
	resp := new(Resp)
	err := exchange(ctx, path, req, resp, func(r *http.Request) (*http.Response, error) { return d.Do(ctx, to, r) })
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// exchange is a call by way of do.
func exchange(ctx context.Context, path string, req, resp any, do func(*http.Request) (*http.Response, error)) error {
	b, err := object.Encode(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if len(b) > MaxBody {
		return object.Errorf(errdefs.ErrInvalidArgument, "encode request: it has %d bytes, more than %d", len(b), MaxBody)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	r.Header.Set("Content-Type", contentType)
	answer, err := do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err = io.ReadAll(io.LimitReader(answer.Body, MaxBody+1))
	if err != nil {
		return fmt.Errorf("read answer: %w: %w", ErrUnanswered, err)
	}
	if len(b) > MaxBody {
		return fmt.Errorf("read answer: %w: it is too large", ErrUnanswered)
	}
	if err := object.Decode(b, resp); err != nil {
		return fmt.Errorf("decode answer: %w: %w", ErrUnanswered, err)
	}
	return nil
}

// Refuse answers a request with an error, of which kind and text cross the wire.
func Refuse(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*NotLeader](err); ok {
		writeValue(w, http.StatusMisdirectedRequest, e.Leader)
		return
	}
	r := wire.Refuse(err)
	writeValue(w, status(r.Kind), r)
}

// What only the gate and the muxes answer: the connection's standing is not
// good enough for the request, or there is no such route for its class.
const (
	statusGate  = http.StatusUnauthorized
	statusRoute = http.StatusNotImplemented
)

func noRoute(w http.ResponseWriter, r *http.Request) {
	writeValue(w, statusRoute, &wire.Refusal{Kind: wire.NotFound, Text: "this manager has no " + r.Method + " " + r.URL.Path})
}

func writeValue(w http.ResponseWriter, status int, v any) {
	b, err := object.Encode(v)
	if err != nil {
		b = nil
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func status(k wire.Kind) int {
	switch k {
	case wire.NotFound:
		return http.StatusNotFound
	case wire.Exhausted:
		return http.StatusTooManyRequests
	case wire.Invalid:
		return http.StatusBadRequest
	case wire.Denied:
		return http.StatusForbidden
	default:
		return http.StatusServiceUnavailable
	}
}

func kind(status int) wire.Kind {
	switch status {
	case http.StatusNotFound, statusRoute:
		return wire.NotFound
	case http.StatusTooManyRequests:
		return wire.Exhausted
	case http.StatusBadRequest:
		return wire.Invalid
	case http.StatusForbidden, statusGate:
		return wire.Denied
	default:
		return wire.Unavailable
	}
}

// refused is the error that an answer is, or nil. The body of an error is
// closed.
func refused(resp *http.Response) error {
	if resp.StatusCode < 300 {
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		return fmt.Errorf("read refusal: %w: %w", ErrUnanswered, err)
	}
	if resp.StatusCode == http.StatusMisdirectedRequest {
		e := new(NotLeader)
		if err := object.Decode(b, &e.Leader); err != nil {
			return fmt.Errorf("decode the leader: %w", err)
		}
		return e
	}
	if resp.Header.Get("Content-Type") != contentType || len(b) == 0 {
		// Not in our words: net/http's, or the answer to a HEAD.
		return (&wire.Refusal{Kind: kind(resp.StatusCode), Text: resp.Status}).Err()
	}
	return parseRefusal(b).Err()
}

// parseRefusal reads a refusal; what cannot be read is one too.
func parseRefusal(b []byte) *wire.Refusal {
	r := new(wire.Refusal)
	if err := object.Decode(b, r); err != nil {
		return &wire.Refusal{Kind: wire.Unavailable, Text: "refused, and the reason cannot be read: " + err.Error()}
	}
	return r
}
