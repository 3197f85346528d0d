package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/term"

	"skep/store/object"
)

// drainTime is how long a client may take to close its end when the server has
// no more to say.
const drainTime = 2 * time.Second

// wire is a connection that a handler took over from HTTP.
type wire struct {
	conn net.Conn
	// head is the reply that begin sends.
	head  string
	begun bool
	// stdin is what the client sends, up to its half-close.
	stdin *io.PipeReader
	// drained closes when the client closed its end.
	drained chan struct{}
}

// takeOver ends HTTP on the connection. The request's body must have been
// read. The caller says how it begins, and closes the wire.
func takeOver(w http.ResponseWriter, r *http.Request, mediaType string) (*wire, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, invalid("the connection cannot become a stream (HTTP/1.1 can): %v", err)
	}
	in, out := io.Pipe()
	x := &wire{conn: conn, head: streamHead(r, mediaType), stdin: in, drained: make(chan struct{})}
	// What the server has read ahead comes first. Reading on through its reader
	// would end the request's context at the client's half-close.
	ahead, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read what came with the request: %w", err)
	}
	go x.receive(io.MultiReader(bytes.NewReader(ahead), conn), out) // ends with the connection, which close waits for
	return x, nil
}

// streamHead is the header of the reply whose rest is the stream.
func streamHead(r *http.Request, mediaType string) string {
	if r.Header.Get("Upgrade") == "" {
		return "HTTP/1.1 200 OK\r\nContent-Type: " + typeRaw + "\r\n\r\n"
	}
	return "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + mediaType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
}

// begin sends the reply's header, once; the stream follows.
func (x *wire) begin() {
	if x.begun {
		return
	}
	x.begun = true
	// A client that is gone shows when the output is written.
	_, _ = io.WriteString(x.conn, x.head)
}

// refuse sends an error in place of the stream.
func (x *wire) refuse(err error) {
	status, _ := statusOf(err)
	body, _ := json.Marshal(common.ErrorResponse{Message: err.Error()})
	_, _ = fmt.Fprintf(x.conn, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(body), body)
}

// receive is the only reader of the connection. It goes on reading when nobody
// wants the input any more: a connection that is closed with unread input is
// reset, and the client loses output that was on its way.
func (x *wire) receive(from io.Reader, to *io.PipeWriter) {
	defer close(x.drained)
	_, err := io.Copy(to, from)
	if err == nil {
		to.Close()
		return
	}
	to.CloseWithError(io.EOF)
	_, _ = io.Copy(io.Discard, from)
}

// close tells the client that there is no more output, waits for it to hang
// up, and closes the connection.
func (x *wire) close() {
	x.stdin.Close()
	if half, ok := x.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		_ = x.conn.SetReadDeadline(time.Now().Add(drainTime))
		<-x.drained
	}
	x.conn.Close()
	<-x.drained
}

// wanted says which streams a client attaches to.
type wanted struct {
	stdin, stdout, stderr, tty bool
	detachKeys                 []byte
}

// streams are the process's ends of the wire.
func (x *wire) streams(q wanted) object.Streams {
	var s object.Streams
	if q.stdin {
		s.Stdin = x.stdin
		s.DetachKeys = q.detachKeys
	} else {
		x.stdin.Close()
	}
	out := &frames{w: x.conn, raw: q.tty}
	if q.stdout {
		s.Stdout = out.stdout()
	}
	if q.stderr {
		s.Stderr = out.stderr()
	}
	return s
}

// complain writes an error where the client reads the process's output: there
// is no other place once the stream has begun.
func complain(ctx context.Context, s object.Streams, err error) {
	to := s.Stdout
	if to == nil {
		to = s.Stderr
	}
	if err != nil && ctx.Err() == nil && to != nil {
		_, _ = io.WriteString(to, err.Error()+"\r\n")
	}
}

// detachKeys decodes keys as "ctrl-p,ctrl-q". A terminal has default ones.
func detachKeys(keys string, tty bool) ([]byte, error) {
	if keys == "" {
		if tty {
			return []byte{'p' & 0x1f, 'q' & 0x1f}, nil
		}
		return nil, nil
	}
	seq, err := term.ToBytes(keys)
	if err != nil {
		return nil, invalid("Invalid detach keys (%s) provided: %v", keys, err)
	}
	return seq, nil
}
