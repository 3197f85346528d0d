// Package stdio looks after what a client types to a process: it finds the
// keys by which the client leaves, and passes on everything else untouched.
//
// It knows nothing of terminals, frames or connections.
package stdio

import (
	"bytes"
	"errors"
	"io"
)

// ErrDetached ends a stream in which the detach keys were typed.
var ErrDetached = errors.New("client detached")

// Detachable reads from r until the keys appear in it; then the error is
// [ErrDetached]. The keys themselves are not passed on, nor is anything after
// them. Bytes that may be the beginning of the keys are held back until the
// next ones decide.
func Detachable(r io.Reader, keys []byte) io.Reader {
	if len(keys) == 0 {
		return r
	}
	return &detachable{r: r, keys: bytes.Clone(keys)}
}

type detachable struct {
	r    io.Reader
	keys []byte
	// Invariant: held is a proper prefix of keys and has not been passed on.
	held  int
	ready []byte // to be passed on before anything else is read
	err   error
}

func (d *detachable) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(d.ready) == 0 && d.err == nil {
		n, err := d.r.Read(p)
		d.take(p[:n])
		if err != nil && d.err == nil {
			d.ready = append(d.ready, d.keys[:d.held]...)
			d.held, d.err = 0, err
		}
	}
	n := copy(p, d.ready)
	d.ready = d.ready[n:]
	if len(d.ready) > 0 {
		return n, nil
	}
	return n, d.err
}

func (d *detachable) take(b []byte) {
	out := make([]byte, 0, len(b)+d.held)
	for _, c := range b {
		// Fall back to the longest beginning of the keys that still fits.
		for d.held > 0 && d.keys[d.held] != c {
			next := d.fallback()
			out = append(out, d.keys[:d.held-next]...)
			d.held = next
		}
		if d.keys[d.held] != c {
			out = append(out, c)
			continue
		}
		if d.held++; d.held == len(d.keys) {
			d.held, d.err = 0, ErrDetached
			break
		}
	}
	d.ready = out
}

// fallback is the length of the longest proper suffix of what is held that is
// a beginning of the keys.
func (d *detachable) fallback() int {
	held := d.keys[:d.held]
	for n := d.held - 1; n > 0; n-- {
		if bytes.HasSuffix(held, d.keys[:n]) {
			return n
		}
	}
	return 0
}
