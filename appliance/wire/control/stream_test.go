package control_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"skep/appliance/wire/control"
	"skep/pki"
)

// ends are both ends of one stream, and when the handler has returned.
type ends struct {
	near, far net.Conn
	ctx       context.Context
	finish    func(error) // makes the handler return
	done      <-chan struct{}
}

func newEnds(t *testing.T) *ends {
	t.Helper()
	e := &ends{}
	conns, finish, done := make(chan net.Conn, 1), make(chan error, 1), make(chan struct{})
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /s", Handler: control.Stream(
		func(ctx context.Context, _ pki.Node, _ *http.Request, conn net.Conn) error {
			defer close(done)
			e.ctx = ctx
			if _, err := conn.Read(nil); err != nil { // starts it
				return err
			}
			conns <- conn
			select {
			case err := <-finish:
				return err
			case <-ctx.Done():
				return nil
			}
		})})
	var err error
	if e.near, err = dialer(t, w.self).Stream(within(t, 5*time.Second), w.peer, "/s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.near.Close() })
	e.far, e.finish, e.done = <-conns, func(err error) { finish <- err }, done
	return e
}

// sides names both ends: what holds for one holds for the other.
func (e *ends) sides() map[string][2]net.Conn {
	return map[string][2]net.Conn{"caller": {e.near, e.far}, "server": {e.far, e.near}}
}

// soon fails if f takes more than two seconds.
func soon(t *testing.T, what string, f func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- f() }()
	select {
	case err := <-result:
		return err
	case <-time.After(2 * time.Second):
		t.Fatalf("%s still blocks", what)
		return nil
	}
}

func read(c net.Conn) func() error {
	return func() error {
		_, err := c.Read(make([]byte, 1))
		return err
	}
}

// fill writes until it cannot.
func fill(c net.Conn) func() error {
	return func() error {
		b := make([]byte, 1<<20)
		for {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
}

func TestStream_DeadlinesEndCalls(t *testing.T) {
	for _, side := range []string{"caller", "server"} {
		t.Run(side, func(t *testing.T) {
			c := newEnds(t).sides()[side][0]
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			if err := soon(t, "read with a deadline", read(c)); !errors.Is(err, os.ErrDeadlineExceeded) || !isTimeout(err) {
				t.Errorf("read with a deadline: got %v", err)
			}
			if err := soon(t, "read after a deadline", read(c)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read after a deadline: got %v", err)
			}
			c = newEnds(t).sides()[side][0]
			time.AfterFunc(30*time.Millisecond, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			if err := soon(t, "read", read(c)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("deadline set during a read: got %v", err)
			}
			c = newEnds(t).sides()[side][0]
			_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if err := soon(t, "write with a deadline", fill(c)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("write with a deadline: got %v", err)
			}
			c = newEnds(t).sides()[side][0]
			time.AfterFunc(50*time.Millisecond, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
			if err := soon(t, "write", fill(c)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("deadline set during a write: got %v", err)
			}
		})
	}
}

// A deadline that passes between two calls, and is moved, has no effect.
func TestStream_DeadlinesThatPassUnusedDoNotMatter(t *testing.T) {
	e := newEnds(t)
	for side, c := range e.sides() {
		for range 3 {
			_ = c[0].SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_ = c[1].SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			go func() { _, _ = io.WriteString(c[0], "hello") }()
			b := make([]byte, 5)
			if _, err := io.ReadFull(c[1], b); err != nil || string(b) != "hello" {
				t.Fatalf("from %s: got %q, %v", side, b, err)
			}
			time.Sleep(40 * time.Millisecond)
		}
	}
}

func TestStream_CloseEndsBothDirections(t *testing.T) {
	for _, side := range []string{"caller", "server"} {
		for what, op := range map[string]func(net.Conn) func() error{"read": read, "write": fill} {
			t.Run(side+" "+what, func(t *testing.T) {
				e := newEnds(t)
				c := e.sides()[side]
				time.AfterFunc(50*time.Millisecond, func() { _ = c[0].Close() })
				if err := soon(t, what, op(c[0])); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("%s on the closed side: got %v", what, err)
				}
				if err := soon(t, "other side's read", func() error { _, err := io.Copy(io.Discard, c[1]); return err }); err != nil && what == "read" {
					t.Errorf("read on the other side: got %v", err)
				}
				_ = c[1].Close()
				select {
				case <-e.done:
				case <-time.After(2 * time.Second):
					t.Error("the handler has not returned")
				}
				if err := soon(t, "write on the closed side", fill(c[0])); err == nil {
					t.Error("write on the closed side: no error")
				}
			})
		}
	}
}

// What was written before Close arrives, and then the end.
func TestStream_CloseLosesNothing(t *testing.T) {
	for _, side := range []string{"caller", "server"} {
		t.Run(side, func(t *testing.T) {
			e := newEnds(t)
			c := e.sides()[side]
			want := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
			if _, err := c[0].Write(want); err != nil {
				t.Fatal(err)
			}
			_ = c[0].Close()
			_ = c[1].SetReadDeadline(time.Now().Add(5 * time.Second))
			got, err := io.ReadAll(c[1])
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
			}
		})
	}
}

func TestStream_TellsAnErrorFromAnEnd(t *testing.T) {
	e := newEnds(t)
	e.finish(nil)
	if err := soon(t, "read", read(e.near)); !errors.Is(err, io.EOF) {
		t.Errorf("after an orderly end: got %v", err)
	}
	e = newEnds(t)
	e.finish(errors.New("it broke"))
	if err := soon(t, "read", read(e.near)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after an error: got %v", err)
	}
	if err := soon(t, "read", read(e.far)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after the handler: got %v", err)
	}
	if _, err := e.far.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the handler: got %v", err)
	}
}

// Neither direction waits for the other.
func TestStream_DirectionsAreIndependent(t *testing.T) {
	for _, side := range []string{"caller", "server"} {
		t.Run(side, func(t *testing.T) {
			c := newEnds(t).sides()[side]
			full := make(chan error, 1)
			go func() { full <- fill(c[0])() }()
			time.Sleep(50 * time.Millisecond) // until nothing goes any more
			if _, err := c[1].Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := soon(t, "read beside a write that waits", read(c[0])); err != nil {
				t.Error(err)
			}
			_ = c[0].Close()
			if err := soon(t, "write", func() error { return <-full }); err == nil {
				t.Error("write on a closed stream: no error")
			}
		})
	}
}

func TestStream_EndsWithItsOpener(t *testing.T) {
	e := newEnds(t)
	if got, want := e.far.RemoteAddr().String(), e.near.LocalAddr().String(); got != want {
		t.Errorf("remote address at the server: got %s, want %s", got, want)
	}
	_ = e.near.Close()
	if err := soon(t, "read", read(e.far)); !errors.Is(err, io.EOF) {
		t.Errorf("read after the caller's Close: got %v", err)
	}
}

func TestDialer_StreamHeedsItsContext(t *testing.T) {
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /s", Handler: control.Stream(
		func(ctx context.Context, _ pki.Node, _ *http.Request, _ net.Conn) error {
			<-ctx.Done()
			return nil
		})})
	d := dialer(t, w.self)
	began := time.Now()
	if _, err := d.Stream(within(t, 50*time.Millisecond), w.peer, "/s"); err == nil || time.Since(began) > 2*time.Second {
		t.Errorf("after %s: got %v", time.Since(began), err)
	}
	d.Close()
	if _, err := d.Stream(within(t, time.Second), w.peer, "/s"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("closed dialer: got %v", err)
	}
}
