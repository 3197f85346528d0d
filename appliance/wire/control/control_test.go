package control_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/pki/join"
	"skep/store/object"
)

func TestCall_AnswersAndRefuses(t *testing.T) {
	w := newWorld(t,
		control.Route{For: members(), Pattern: "POST /echo", Handler: control.Handle(echo)},
		control.Route{For: []control.Class{control.Manager}, Pattern: "POST /fail", Handler: control.Handle(
			func(context.Context, pki.Node, *ask) (*reply, error) {
				return nil, object.Errorf(errdefs.ErrNotFound, "node x not found")
			})},
		control.Route{For: members(), Pattern: "POST /lead", Handler: control.Handle(
			func(context.Context, pki.Node, *ask) (*reply, error) {
				return nil, &control.NotLeader{Leader: wire.Peer{NodeID: "m2", Addr: "10.0.0.2:2377"}}
			})},
	)
	w.book.set("w1", pki.Worker, 0)
	worker, manager := dialer(t, w.Worker(t, "w1", 2)), dialer(t, w.self)
	ctx := within(t, 10*time.Second)
	for d, want := range map[*control.Dialer]string{worker: "w1:hi", manager: "m1:hi"} {
		got, err := control.Call[ask, reply](ctx, d, w.peer, "/echo", &ask{"hi"})
		if err != nil || got.Text != want {
			t.Errorf("got %v, %v, want %q", got, err, want)
		}
	}
	if _, err := control.Call[ask, reply](ctx, manager, w.peer, "/fail", &ask{}); !errdefs.IsNotFound(err) || err.Error() != "node x not found" {
		t.Errorf("refused call: got %v", err)
	}
	if _, err := control.Call[ask, reply](ctx, worker, w.peer, "/fail", &ask{}); !errdefs.IsNotFound(err) || err.Error() != "this manager has no POST /w/v1/fail" {
		t.Errorf("manager's route as a worker: got %v", err)
	}
	_, err := control.Call[ask, reply](ctx, worker, w.peer, "/lead", &ask{})
	if e, ok := errors.AsType[*control.NotLeader](err); !ok || e.Leader != (wire.Peer{NodeID: "m2", Addr: "10.0.0.2:2377"}) {
		t.Errorf("call to a follower: got %v", err)
	}
	type other struct{ Number int }
	if _, err := control.Call[other, reply](ctx, worker, w.peer, "/echo", &other{1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown field: got %v", err)
	}
	if _, err := control.Call[ask, other](ctx, worker, w.peer, "/echo", &ask{"x"}); err == nil {
		t.Error("answer with an unknown field: no error")
	}
	long := &ask{strings.Repeat("x", control.MaxBody)}
	if _, err := control.Call[ask, reply](ctx, worker, w.peer, "/echo", long); !errdefs.IsInvalidArgument(err) {
		t.Errorf("large request: got %v", err)
	}
}

func TestJoin_TrustsTheTokensRootOnly(t *testing.T) {
	w := newWorld(t, control.Route{For: []control.Class{control.Anonymous}, Pattern: "POST /join", Handler: control.Handle(
		func(ctx context.Context, from pki.Node, q *ask) (*reply, error) {
			return &reply{from.ID + q.Text + control.Source(ctx).String()}, nil
		})})
	ctx := within(t, 10*time.Second)
	var got reply
	if err := control.Join(ctx, w.peer.Addr, join.New(w.Root.Cert.Raw), "/join", &ask{"me@"}, &got); err != nil || got.Text != "me@127.0.0.1" {
		t.Errorf("got %q, %v", got.Text, err)
	}
	err := control.Join(ctx, w.peer.Addr, join.New([]byte("another")), "/join", &ask{"me"}, &got)
	if _, ok := errors.AsType[*control.FingerprintError](err); !ok || !strings.Contains(err.Error(), "remote CA does not match fingerprint. Expected: ") {
		t.Errorf("another root: got %v", err)
	}
}

func echoStream(ctx context.Context, _ pki.Node, r *http.Request, conn net.Conn) error {
	if r.PathValue("id") == "no" {
		return object.Errorf(errdefs.ErrNotFound, "stream no not found")
	}
	_, err := io.Copy(conn, conn)
	return err
}

func TestStream_IsAConnection(t *testing.T) {
	w := newWorld(t, control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(echoStream)})
	d := dialer(t, w.self)
	ctx := within(t, 10*time.Second)
	c, err := d.Stream(ctx, w.peer, "/streams/a")
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != w.peer.Addr {
		t.Errorf("remote address: got %s, want %s", c.RemoteAddr(), w.peer.Addr)
	}
	r := bufio.NewReader(c)
	for _, line := range []string{"one\n", strings.Repeat("x", 300_000) + "\n", "three\n"} {
		go func() { _, _ = io.WriteString(c, line) }()
		if got, err := r.ReadString('\n'); err != nil || got != line {
			t.Fatalf("got %d bytes, %v, want %d", len(got), err, len(line))
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: got %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	if _, err := io.WriteString(c, "more\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "more\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Stream(ctx, w.peer, "/streams/no"); !errdefs.IsNotFound(err) {
		t.Errorf("refused stream: got %v", err)
	}
}
