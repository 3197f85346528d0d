package admin

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxText is how much of each text that a client chose is recorded, in bytes.
const maxText = 512

func clip(s string) string { return s[:min(len(s), maxText)] }

type recorderKey struct{}

// NameObject tells the audit record of the request that ctx belongs to which
// object it made, where the path cannot say. It is of use until the reply begins.
func NameObject(ctx context.Context, name string) {
	if rec, ok := ctx.Value(recorderKey{}).(*recorder); ok {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.line.Object = clip(name)
	}
}

// recorder writes the audit record when the status is known and before the
// client learns it: an acknowledged change is always on record.
type recorder struct {
	http.ResponseWriter
	mux *Mux

	mu sync.Mutex
	// Everything below is guarded by mu.
	line    Record
	settled bool
	err     error // of the audit; the reply then says so instead of the handler's
	body    hash.Hash
	read    bool // whether body was given anything
}

// tee passes a body on and remembers what it was.
type tee struct {
	io.ReadCloser
	rec *recorder
}

func (t tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.rec.mu.Lock()
	defer t.rec.mu.Unlock()
	t.rec.body.Write(p[:n])
	t.rec.read = t.rec.read || n > 0
	return n, err
}

func (m *Mux) record(w http.ResponseWriter, r *http.Request, caller Principal, params []string) *recorder {
	values := make([]string, len(params))
	for i, name := range params {
		values[i] = r.PathValue(name)
	}
	return &recorder{ResponseWriter: w, mux: m, body: sha256.New(), line: Record{
		Time: time.Now(), Request: rand.Text(), Decision: "allow",
		Principal: clip(caller.Name), Transport: caller.Transport, Detail: clip(caller.Detail), Role: caller.Role.String(),
		Pattern: r.Pattern, Object: clip(strings.Join(values, "/")), Query: clip(r.URL.RawQuery),
	}}
}

// settle records the status, once. If that cannot be done, the client gets an
// error in place of the reply.
func (rec *recorder) settle(status int) error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.settled {
		return rec.err
	}
	rec.settled = true
	rec.line.Status = status
	if rec.read {
		rec.line.Body = hex.EncodeToString(rec.body.Sum(nil))
	}
	if err := rec.mux.audit.Append(rec.line); err != nil {
		rec.err = fmt.Errorf("write audit record: %w", err)
		rec.mux.logger.Error("lost audit record", "pattern", rec.line.Pattern, "principal", rec.line.Principal, "err", err)
		refuse(rec.ResponseWriter, http.StatusInternalServerError, rec.err.Error())
	}
	return rec.err
}

// end settles a request whose handler wrote nothing, or did not return.
func (rec *recorder) end() {
	if p := recover(); p != nil {
		_ = rec.settle(http.StatusInternalServerError)
		panic(p)
	}
	_ = rec.settle(http.StatusOK)
}

func (rec *recorder) WriteHeader(status int) {
	// Other informational replies come before the real one.
	if status < 200 && status != http.StatusSwitchingProtocols {
		rec.ResponseWriter.WriteHeader(status)
		return
	}
	if rec.settle(status) == nil {
		rec.ResponseWriter.WriteHeader(status)
	}
}

func (rec *recorder) Write(p []byte) (int, error) {
	if err := rec.settle(http.StatusOK); err != nil {
		return 0, err
	}
	return rec.ResponseWriter.Write(p)
}

// FlushError begins the reply, as [http.ResponseController] does.
func (rec *recorder) FlushError() error {
	if err := rec.settle(http.StatusOK); err != nil {
		return err
	}
	return http.NewResponseController(rec.ResponseWriter).Flush()
}

// Flush is FlushError for those who look for an [http.Flusher].
func (rec *recorder) Flush() { _ = rec.FlushError() }

// Hijack hands the connection over; what is said on it is the handler's business.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if err := rec.settle(http.StatusSwitchingProtocols); err != nil {
		return nil, nil, err
	}
	return http.NewResponseController(rec.ResponseWriter).Hijack()
}

// Unwrap lets [http.ResponseController] reach deadlines.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }
