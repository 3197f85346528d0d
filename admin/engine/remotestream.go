package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
)

// join makes the client's connection and one to another node into one stream.
//
// A stream between nodes has no half-close, and a process has to learn of the
// end of its input. So what the client sends is chunked on the way, see [chunked].
func (a *API) join(w http.ResponseWriter, r *http.Request, p place) error {
	body, err := streamBody(r)
	if err != nil {
		return err
	}
	var start container.ExecStartRequest
	// What is no JSON is refused by the node.
	if json.Unmarshal(body, &start) == nil && start.Detach {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return a.pass(w, r, p)
	}
	conn, err := reach(r.Context(), a.Connect, p.node.ID)
	if err != nil {
		return a.unreached(r, p, err)
	}
	defer conn.Close()
	x, err := takeOver(w, r, "")
	if err != nil {
		return err
	}
	defer x.close()
	stop := context.AfterFunc(r.Context(), func() { _ = conn.Close() })
	defer stop()
	req, err := a.request(r, p, bytes.NewReader(body))
	if err != nil {
		x.refuse(err)
		return nil
	}
	out, resp, err := upgrade(conn, req)
	if err != nil {
		x.refuse(a.unreached(r, p, err))
		return nil
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		x.relay(resp)
		return nil
	}
	x.head = streamHead(r, resp.Header.Get("Content-Type"))
	x.begin()
	x.connect(conn, out)
	return nil
}

// streamBody is the body of a request that becomes a stream. That of "attach"
// is not looked at.
func streamBody(r *http.Request) ([]byte, error) {
	if !isExec(r.Pattern) {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = invalid("request body larger than %d bytes", maxBody)
	}
	return body, err
}

// upgrade sends a request whose reply is a stream. It is read through the reader.
func upgrade(conn net.Conn, req *http.Request) (*bufio.Reader, *http.Response, error) {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if err := conn.SetDeadline(time.Now().Add(replyTime)); err != nil {
		return nil, nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, nil, err
	}
	in := bufio.NewReaderSize(conn, 32<<10)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, nil, err
	}
	return in, resp, conn.SetDeadline(time.Time{})
}

// relay sends another node's refusal in place of the stream.
func (x *wire) relay(resp *http.Response) {
	resp.Close = true
	_ = resp.Write(x.conn)
}

// connect carries both directions until the node ends the stream, or the
// client is gone.
func (x *wire) connect(conn net.Conn, out io.Reader) {
	var input sync.WaitGroup
	input.Go(func() {
		w := httputil.NewChunkedWriter(conn)
		if _, err := io.Copy(w, x.stdin); err == nil {
			_ = w.Close()
		}
	})
	_, _ = io.Copy(x.conn, out)
	_ = conn.Close()
	_ = x.stdin.Close()
	input.Wait()
}

// chunked is the reply to a manager whose request becomes a stream: what comes
// then is in chunks, of which the empty one ends the input.
type chunked struct{ http.ResponseWriter }

// Hijack gives the connection as if its input were plain.
func (c chunked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	ahead, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	plain := &chunkedConn{Conn: conn, in: httputil.NewChunkedReader(io.MultiReader(bytes.NewReader(ahead), conn))}
	return plain, bufio.NewReadWriter(bufio.NewReader(plain), bufio.NewWriter(plain)), nil
}

// Unwrap lets [http.ResponseController] reach the rest.
func (c chunked) Unwrap() http.ResponseWriter { return c.ResponseWriter }

type chunkedConn struct {
	net.Conn
	in io.Reader
}

func (c *chunkedConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// CloseWrite ends the output. The manager then hangs up.
func (c *chunkedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
