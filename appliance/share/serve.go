package share

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"skep/appliance/wire/control"
)

// Pattern is where a mux serves blobs.
const Pattern = "GET /blobs/{digest}"

// holderHeader names the node that a blob comes from.
const holderHeader = "Skep-Holder"

// sluggish is how long the other side may take for a piece of a blob.
const sluggish = 20 * time.Second

// Local is the node's own blobs.
type Local interface {
	// Blob opens a blob of an image that the node holds whole; the error for
	// any other is of the kind not found.
	Blob(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Handler serves a node's own blobs at [Pattern], parts of them too.
func Handler(node func() string, local Local) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serveOwn(w, r, node(), local); err != nil {
			control.Refuse(w, err)
		}
	})
}

// serveOwn serves a blob of this node, or returns why not.
func serveOwn(w http.ResponseWriter, r *http.Request, node string, local Local) error {
	f, err := local.Blob(r.Context(), digest.Digest(r.PathValue("digest")))
	if err != nil {
		return err
	}
	defer f.Close()
	w.Header().Set(holderHeader, node)
	w.Header().Set("Content-Type", "application/octet-stream")
	p := newPatient(w)
	defer p.done()
	http.ServeContent(p, r, "", time.Time{}, f)
	return nil
}

// patient gives the other side some time for each piece, and not for the whole.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func newPatient(w http.ResponseWriter) *patient {
	return &patient{ResponseWriter: w, control: http.NewResponseController(w)}
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.control.SetWriteDeadline(time.Now().Add(sluggish)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// done leaves the connection to the next request.
func (p *patient) done() { _ = p.control.SetWriteDeadline(time.Time{}) }

// copyBlob copies in pieces that make few system calls and frames.
func copyBlob(w io.Writer, r io.Reader) error {
	// Only Write and Read: the pieces must be of this size.
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return err
}
