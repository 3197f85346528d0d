package logstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/logstream"
	"skep/appliance/share"
	"skep/store/object"
)

// logs are a node's logs: each function writes one until it returns.
type logs map[string]func(ctx context.Context, q object.LogQuery, say func(string) bool) error

func (l logs) TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		write := l[task.ID]
		if write == nil {
			yield(object.LogLine{}, object.Errorf(errdefs.ErrNotFound, "no log of %s", task.ID))
			return
		}
		err := write(ctx, q, func(text string) bool {
			return yield(object.LogLine{Time: time.Now(), Text: []byte(text)}, nil)
		})
		if err != nil {
			yield(object.LogLine{}, err)
		}
	}
}

// world is two nodes: here, which reads, and there.
type world struct {
	t     *testing.T
	there logs
	serve func(*http.ServeMux) // what there serves, made at the first use

	mu      sync.Mutex
	down    bool       // and known to be
	dial    error      // what connecting gives
	silent  bool       // connects and says nothing
	gone    bool       // the task
	conns   []net.Conn // the nodes' ends
	serving sync.WaitGroup
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) Node(id string) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return "host-of-" + id, w.down
}

func (w *world) HasTask(string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.gone
}

func (w *world) connect(context.Context, string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dial != nil {
		return nil, w.dial
	}
	near, far := net.Pipe()
	w.conns = append(w.conns, far)
	logger := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	if w.silent {
		w.serving.Go(func() { _, _ = io.Copy(io.Discard, far) })
		return near, nil
	}
	mux := http.NewServeMux()
	if w.serve == nil {
		w.serve = logstream.NewServer(w.there, logger).Route
	}
	w.serve(mux)
	w.serving.Go(func() {
		if err := share.ServeConn(w.t.Context(), far, mux, logger); err != nil {
			w.t.Error(err)
		}
	})
	return near, nil
}

// crash breaks off all connections.
func (w *world) crash() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func (w *world) read(ctx context.Context, task string, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	r := logstream.NewReader(logstream.Config{
		NodeID: func() string { return "here" }, Local: logs{"local": say("from here\n")},
		Connect: w.connect, Directory: w,
	})
	node := "there"
	if task == "local" {
		node = "here"
	}
	return r.TaskLogs(ctx, &object.Task{ID: task, NodeID: node}, q)
}

func say(lines ...string) func(context.Context, object.LogQuery, func(string) bool) error {
	return func(_ context.Context, _ object.LogQuery, say func(string) bool) error {
		for _, l := range lines {
			if !say(l) {
				break
			}
		}
		return nil
	}
}

// all is the log, its warnings and its error as text.
func all(lines iter.Seq2[object.LogLine, error]) (got []string) {
	for line, err := range lines {
		if err != nil {
			return append(got, "error: "+err.Error())
		}
		got = append(got, string(line.Text))
	}
	return got
}

// inBubble runs f in a world whose nodes have ended when it returns.
func inBubble(t *testing.T, there logs, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, there: there}
		f(w)
		synctest.Wait()
		w.crash()
		w.serving.Wait()
	})
}

func TestTaskLogs_ReadsWhatTheNodeHas(t *testing.T) {
	asked := object.LogQuery{Stdout: true, Tail: 7, Since: time.Unix(5, 6).UTC()}
	there := logs{
		"few":  say("one\n", "two\n"),
		"none": say(),
		"big":  say(slices.Repeat([]string{strings.Repeat("x", 16<<10)}, 100)...),
		"bad": func(_ context.Context, _ object.LogQuery, say func(string) bool) error {
			say("one\n")
			return object.Errorf(errdefs.ErrNotImplemented, "cannot be read")
		},
		"query": func(_ context.Context, q object.LogQuery, _ func(string) bool) error {
			if q != asked {
				return fmt.Errorf("asked for %v", q)
			}
			return nil
		},
	}
	inBubble(t, there, func(w *world) {
		tests := []struct {
			task string
			want []string
		}{
			{"few", []string{"one\n", "two\n"}},
			{"local", []string{"from here\n"}},
			{"none", nil},
			{"bad", []string{"one\n", "error: cannot be read"}},
			{"query", nil},
			{"missing", []string{"error: no log of missing"}},
		}
		for _, tt := range tests {
			if got := all(w.read(w.t.Context(), tt.task, asked)); !slices.Equal(got, tt.want) {
				t.Errorf("%s: got %q, want %q", tt.task, got, tt.want)
			}
		}
		// It is not the node that is missing, and nothing is tried again.
		if got := all(w.read(w.t.Context(), "bad", object.LogQuery{Follow: true})); !slices.Equal(got, []string{"one\n", "error: cannot be read"}) {
			t.Errorf("following what cannot be read: got %q", got)
		}
		if n := len(all(w.read(w.t.Context(), "big", asked))); n != 100 {
			t.Errorf("got %d lines of 100", n)
		}
	})
}

func TestTaskLogs_NeverHangsOnANodeThatIsNotThere(t *testing.T) {
	hang := logs{"x": func(ctx context.Context, _ object.LogQuery, say func(string) bool) error {
		say("begun\n")
		<-ctx.Done()
		return ctx.Err()
	}}
	tests := []struct {
		name   string
		break_ func(*world)
		within time.Duration
		want   []string
	}{
		{"down", func(w *world) { w.down = true }, 0, []string{"error: node host-of-there is not available: it is down"}},
		{
			"no session", func(w *world) { w.dial = object.Errorf(errdefs.ErrNotFound, "no session") }, 0,
			[]string{"error: node host-of-there is not available: no session"},
		},
		{"silent", func(w *world) { w.silent = true }, 5 * time.Second, []string{"error: node host-of-there is not available: it does not answer"}},
		{
			"breaks off", func(w *world) { time.AfterFunc(time.Minute, w.crash) }, time.Minute,
			[]string{"begun\n", "error: node host-of-there disconnected unexpectedly: read frame: EOF"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, hang, func(w *world) {
				tt.break_(w)
				began := time.Now()
				var last error
				var got []string
				for line, err := range w.read(w.t.Context(), "x", object.LogQuery{Stdout: true}) {
					if last = err; err != nil {
						got = append(got, "error: "+err.Error())
						break
					}
					got = append(got, string(line.Text))
				}
				if !slices.Equal(got, tt.want) || time.Since(began) != tt.within {
					t.Errorf("after %v got %q, want %q after %v", time.Since(began), got, tt.want, tt.within)
				}
				if !errdefs.IsUnavailable(last) || errdefs.IsNotFound(last) {
					t.Errorf("kind of %v is not unavailable", last)
				}
			})
		})
	}
}

// frozen takes what is said and says nothing, from some point on.
type frozen struct {
	net.Conn
	after time.Time
}

func (f frozen) Read(b []byte) (int, error) {
	for {
		n, err := f.Conn.Read(b)
		if err != nil || time.Now().Before(f.after) {
			return n, err
		}
	}
}

func TestTaskLogs_NoticesANodeThatStopsInTheMiddle(t *testing.T) {
	quiet := logs{"x": func(ctx context.Context, _ object.LogQuery, say func(string) bool) error {
		say("begun\n")
		<-ctx.Done()
		return ctx.Err()
	}}
	inBubble(t, quiet, func(w *world) {
		began := time.Now()
		r := logstream.NewReader(logstream.Config{
			NodeID: func() string { return "here" }, Directory: w,
			Connect: func(ctx context.Context, node string) (net.Conn, error) {
				c, err := w.connect(ctx, node)
				return frozen{c, began.Add(time.Hour)}, err
			},
		})
		got := all(r.TaskLogs(w.t.Context(), &object.Task{ID: "x", NodeID: "there"}, object.LogQuery{}))
		want := []string{"begun\n", "error: node host-of-there disconnected unexpectedly: it does not answer"}
		// A node that is only quiet for an hour is none that does not answer.
		if took := time.Since(began); !slices.Equal(got, want) || took < time.Hour || took > time.Hour+10*time.Second {
			t.Errorf("after %v got %q, want %q", took, got, want)
		}
	})
}

func TestTaskLogs_GoesOnWhenTheNodeIsBack(t *testing.T) {
	start := time.Time{}
	there := logs{"x": func(ctx context.Context, q object.LogQuery, say func(string) bool) error {
		// It writes its age every ten minutes, and all of it is kept.
		for age := 10 * time.Minute; age <= 50*time.Minute; age += 10 * time.Minute {
			at := start.Add(age)
			if wait := time.Until(at); wait > 0 {
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if q.Since.After(at) {
				continue
			}
			if !say(age.String() + "\n") {
				return nil
			}
		}
		return nil
	}}
	inBubble(t, there, func(w *world) {
		start = time.Now()
		time.AfterFunc(15*time.Minute, func() {
			w.set(func() { w.dial = errors.New("no session") })
			w.crash()
		})
		time.AfterFunc(16*time.Minute, func() { w.set(func() { w.down = true }) })
		time.AfterFunc(35*time.Minute, func() { w.set(func() { w.down, w.dial = false, nil }) })
		got := all(w.read(w.t.Context(), "x", object.LogQuery{Stdout: true, Follow: true, Tail: -1}))
		want := []string{
			"10m0s\n", "warning: incomplete log stream: node host-of-there disconnected unexpectedly: read frame: EOF\n",
			"20m0s\n", "30m0s\n", "40m0s\n", "50m0s\n",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestTaskLogs_FollowingEndsWithTheTask(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		w.down = true
		time.AfterFunc(time.Hour, func() { w.set(func() { w.gone = true }) })
		began := time.Now()
		got := all(w.read(w.t.Context(), "x", object.LogQuery{Follow: true}))
		want := []string{"warning: incomplete log stream: node host-of-there is not available: it is down\n"}
		if !slices.Equal(got, want) || time.Since(began) > time.Hour+time.Minute {
			t.Errorf("after %v got %q, want %q", time.Since(began), got, want)
		}
	})
}

// The bubble fails if the node still reads the log when nobody does.
func TestTaskLogs_NothingIsLeftWhenTheReaderGoes(t *testing.T) {
	there := logs{"x": func(ctx context.Context, _ object.LogQuery, say func(string) bool) error {
		for say("again\n") {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}}
	for _, how := range []string{"stops reading", "ends its context"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, there, func(w *world) {
				ctx, cancel := context.WithCancel(w.t.Context())
				defer cancel()
				n := 0
				for line, err := range w.read(ctx, "x", object.LogQuery{Follow: true}) {
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					if n++; n == 3 {
						if how == "stops reading" {
							break
						}
						cancel()
					} else if n > 3 && err == nil {
						t.Errorf("got %q after the end", line.Text)
					}
				}
				synctest.Wait()
				w.serving.Wait()
			})
		})
	}
}

func TestServer_LimitsWhatItSends(t *testing.T) {
	const lines = 4000 // of 10 KiB
	there := logs{"x": say(slices.Repeat([]string{strings.Repeat("y", 10<<10)}, lines)...)}
	inBubble(t, there, func(w *world) {
		began := time.Now()
		if n := len(all(w.read(w.t.Context(), "x", object.LogQuery{}))); n != lines {
			t.Fatalf("got %d lines of %d", n, lines)
		}
		if took := time.Since(began); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("40 MB took %v", took)
		}
	})
}

// A log that is not read on leaves room on a connection that it shares.
func TestServer_SendsLittleAhead(t *testing.T) {
	said := 0
	there := logs{"x": func(_ context.Context, _ object.LogQuery, say func(string) bool) error {
		for range 1000 {
			if !say(strings.Repeat("z", 1<<10)) {
				break
			}
			said++
		}
		return nil
	}}
	inBubble(t, there, func(w *world) {
		next, stop := iter.Pull2(logstream.NewReader(logstream.Config{
			NodeID: func() string { return "here" }, Directory: w,
			Connect: func(ctx context.Context, node string) (net.Conn, error) {
				c, err := w.connect(ctx, node)
				return buffered(c), err
			},
		}).TaskLogs(w.t.Context(), &object.Task{ID: "x", NodeID: "there"}, object.LogQuery{}))
		defer stop()
		if _, err, ok := next(); !ok || err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if said > 100 {
			t.Errorf("%d KiB were sent ahead", said)
		}
		n := 1
		for {
			if _, err, ok := next(); err != nil {
				t.Fatal(err)
			} else if !ok {
				break
			}
			n++
		}
		if n != 1000 {
			t.Errorf("got %d lines of 1000", n)
		}
	})
}

// deep is a connection that takes whatever is sent.
type deep struct {
	net.Conn
	in *io.PipeReader
}

func (d deep) Read(b []byte) (int, error) { return d.in.Read(b) }

func (d deep) Close() error { return errors.Join(d.in.Close(), d.Conn.Close()) }

func buffered(c net.Conn) net.Conn {
	in, out := io.Pipe()
	var mu sync.Mutex
	var all []byte
	more, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := c.Read(buf)
			mu.Lock()
			all = append(all, buf[:n]...)
			mu.Unlock()
			if err != nil {
				done <- err
				return
			}
			select {
			case more <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		var end error
		for {
			mu.Lock()
			piece := all
			all = nil
			mu.Unlock()
			if len(piece) > 0 {
				_, _ = out.Write(piece)
				continue
			}
			if end != nil {
				out.CloseWithError(end)
				return
			}
			select {
			case <-more:
			case end = <-done:
			}
		}
	}()
	return deep{c, in}
}

func TestServer_HasRoomForSoMany(t *testing.T) {
	there := logs{"x": func(ctx context.Context, _ object.LogQuery, say func(string) bool) error {
		say("begun\n")
		<-ctx.Done()
		return ctx.Err()
	}}
	inBubble(t, there, func(w *world) {
		ctx, cancel := context.WithCancel(w.t.Context())
		defer cancel()
		server := logstream.NewServer(there, slog.New(slog.DiscardHandler))
		w.serve = server.Route
		var reading sync.WaitGroup
		for range 48 {
			reading.Go(func() {
				if got := all(w.read(ctx, "x", object.LogQuery{})); len(got) == 0 || got[0] != "begun\n" {
					t.Errorf("got %q", got)
				}
			})
		}
		time.Sleep(time.Second)
		if got := all(w.read(ctx, "x", object.LogQuery{Follow: true})); len(got) != 1 || got[0] != "error: too many logs of the node are being read" {
			t.Errorf("one more: got %q", got)
		}
		cancel()
		reading.Wait()
		synctest.Wait()
		ctx, cancel = context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		if got := all(w.read(ctx, "x", object.LogQuery{})); len(got) == 0 || got[0] != "begun\n" {
			t.Errorf("after they have gone: got %q", got)
		}
	})
}
