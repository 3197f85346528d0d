package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"skep/appliance/wire"
)

// closeTime is how long the other side of a stream has to take what was written
// before it was closed.
const closeTime = 5 * time.Second

// Stream opens the stream that [Stream] serves at path, without the prefix of
// the class. Closing it ends both directions; what was written before still
// reaches the other side, if that takes it in a few seconds. ctx is for opening
// it only.
func (d *Dialer) Stream(ctx context.Context, to wire.Peer, path string) (net.Conn, error) {
	s := &dialed{ended: make(chan struct{})}
	var body, answer net.Conn
	body, s.out = net.Pipe()
	s.in, answer = net.Pipe()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	stop := context.AfterFunc(ctx, cancel)
	resp, err := s.open(life, d, to, path, body)
	if !stop() && err == nil {
		_ = resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		_ = s.out.Close()
		return nil, fmt.Errorf("open stream %s: %w", path, err)
	}
	// It ends with the stream, whichever side closes it.
	go s.receive(answer, resp.Body)
	return s, nil
}

// dialed is a stream at the side that opened it. Its directions are pipes,
// since those have deadlines: the request's body is read from one, the answer
// is written to the other.
type dialed struct {
	in, out net.Conn
	link    *link
	cancel  context.CancelFunc
	ended   chan struct{} // closes when err is set
	err     error         // what the other side's end was, if it was none
}

func (s *dialed) open(ctx context.Context, d *Dialer, to wire.Peer, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	resp, l, err := d.do(ctx, to, req)
	s.link = l
	return resp, err
}

// receive moves what comes from the other side into the pipe.
func (s *dialed) receive(pipe net.Conn, body io.ReadCloser) {
	defer s.cancel()
	defer body.Close()
	_, err := io.CopyBuffer(struct{ io.Writer }{pipe}, struct{ io.Reader }{body}, make([]byte, 16<<10))
	if errors.Is(err, io.ErrClosedPipe) {
		// Closed on our side: reading on gives the other side the time to see
		// it, until Close's patience ends.
		_, err = io.Copy(io.Discard, body)
	}
	s.err = err
	close(s.ended)
	_ = pipe.Close()
}

func (s *dialed) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	if errors.Is(err, io.EOF) {
		<-s.ended
		if s.err != nil {
			err = s.err
		}
	}
	return n, err
}

func (s *dialed) Write(b []byte) (int, error) { return s.out.Write(b) }

// CloseWrite ends the direction to the other side only.
func (s *dialed) CloseWrite() error { return s.out.Close() }

func (s *dialed) Close() error {
	_ = s.in.Close()
	_ = s.out.Close()
	time.AfterFunc(closeTime, s.cancel)
	return nil
}

func (s *dialed) LocalAddr() net.Addr  { return s.link.LocalAddr() }
func (s *dialed) RemoteAddr() net.Addr { return s.link.RemoteAddr() }

func (s *dialed) SetDeadline(t time.Time) error {
	return errors.Join(s.in.SetDeadline(t), s.out.SetDeadline(t))
}

func (s *dialed) SetReadDeadline(t time.Time) error  { return s.in.SetReadDeadline(t) }
func (s *dialed) SetWriteDeadline(t time.Time) error { return s.out.SetWriteDeadline(t) }
