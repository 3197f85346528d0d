package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"skep/pki"
)

// Stream serves a stream: a request whose body and answer are the two
// directions of a connection. The caller has its stream when f first reads or
// writes; an error before that is a refusal. The stream ends when f returns,
// and ctx ends when the connection is closed, by either side: whoever was given
// conn must be done with it then.
//
// A deadline that passes during a Read or Write ends that direction for good.
func Stream(f func(ctx context.Context, from pki.Node, r *http.Request, conn net.Conn) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		s := &served{w: w, rc: http.NewResponseController(w), body: r.Body, link: linkFrom(ctx), cancel: cancel}
		s.reading.expire = func() { _ = s.rc.SetReadDeadline(time.Unix(1, 0)) }
		s.writing.expire = func() { _ = s.rc.SetWriteDeadline(time.Unix(1, 0)) }
		err := f(ctx, Caller(ctx), r, s)
		switch started := s.finish(); {
		case !started && err != nil:
			Refuse(w, err)
		case !started:
			w.WriteHeader(http.StatusOK)
		case err != nil:
			panic(http.ErrAbortHandler) // the other side is to see that this is no orderly end
		}
	})
}

// served is a stream at the side that serves it.
type served struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	body   io.Reader
	link   *link
	cancel context.CancelFunc

	reading, writing deadline

	// started is set under mu.
	started atomic.Bool
	// mu is held while w is used.
	mu    sync.Mutex
	ended bool
}

// start gives the caller its stream. Later it does not wait for a Write that is
// under way.
func (s *served) start() error {
	if s.started.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startLocked()
}

func (s *served) startLocked() error {
	if s.ended {
		return net.ErrClosed
	}
	if s.started.Load() {
		return nil
	}
	s.started.Store(true)
	s.w.WriteHeader(http.StatusOK)
	return s.rc.Flush()
}

func (s *served) Read(b []byte) (int, error) {
	if err := s.start(); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil // where a body would wait
	}
	if err := s.reading.enter(); err != nil {
		return 0, err
	}
	n, err := s.body.Read(b)
	if late := s.reading.leave(); err != nil && !errors.Is(err, io.EOF) && late != nil {
		err = late
	}
	return n, err
}

func (s *served) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.startLocked(); err != nil {
		return 0, err
	}
	if err := s.writing.enter(); err != nil {
		return 0, err
	}
	n, err := s.w.Write(b)
	if err == nil {
		err = s.rc.Flush()
	}
	if late := s.writing.leave(); err != nil && late != nil {
		err = late
	}
	return n, err
}

// Close ends the stream: the handler returns.
func (s *served) Close() error {
	s.cancel()
	s.reading.close()
	s.writing.close()
	return nil
}

// finish waits until nobody uses w any more.
func (s *served) finish() (started bool) {
	_ = s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return s.started.Load()
}

func (s *served) LocalAddr() net.Addr  { return s.link.LocalAddr() }
func (s *served) RemoteAddr() net.Addr { return s.link.RemoteAddr() }

func (s *served) SetDeadline(t time.Time) error {
	s.reading.set(t)
	s.writing.set(t)
	return nil
}

func (s *served) SetReadDeadline(t time.Time) error {
	s.reading.set(t)
	return nil
}

func (s *served) SetWriteDeadline(t time.Time) error {
	s.writing.set(t)
	return nil
}

// deadline is that of one direction. It matters only while a call is under way,
// which expire then breaks off.
type deadline struct {
	expire func()

	mu     sync.Mutex
	at     time.Time
	calls  int
	timer  *time.Timer
	broken bool // a call was broken off
	closed bool
}

func (d *deadline) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.passedLocked(); err != nil {
		return err
	}
	d.calls++
	d.armLocked()
	return nil
}

// leave is nil if the call was not broken off.
func (d *deadline) leave() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls--
	if d.calls == 0 && d.timer != nil {
		d.timer.Stop()
	}
	return d.passedLocked()
}

func (d *deadline) passedLocked() error {
	switch {
	case d.broken:
		return os.ErrDeadlineExceeded
	case d.closed:
		return net.ErrClosed
	case !d.at.IsZero() && !time.Now().Before(d.at):
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (d *deadline) armLocked() {
	if d.calls == 0 {
		return
	}
	switch {
	case d.at.IsZero():
		if d.timer != nil {
			d.timer.Stop()
		}
	case d.timer == nil:
		d.timer = time.AfterFunc(time.Until(d.at), d.fire)
	default:
		d.timer.Reset(time.Until(d.at))
	}
}

// fire breaks off the calls that are under way, if it is still time to.
func (d *deadline) fire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls > 0 && d.passedLocked() != nil {
		d.broken = true
		d.expire()
	}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	d.armLocked()
}

func (d *deadline) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.calls > 0 {
		d.expire()
	}
}
