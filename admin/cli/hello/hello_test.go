package hello_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/admin/cli/hello"
)

// lockedBuffer is written by several requests.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type running struct {
	addr string
	stop context.CancelFunc
	done chan error
	out  *lockedBuffer
}

func start(t *testing.T) running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	addr := make(chan string, 1)
	r := running{stop: stop, done: make(chan error, 1), out: &lockedBuffer{}}
	go func() {
		r.done <- hello.Run(ctx, hello.Config{Listen: "127.0.0.1:0", Out: r.out, Ready: func(a string) { addr <- a }})
	}()
	select {
	case r.addr = <-addr:
	case err := <-r.done:
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

func (r running) get(t *testing.T, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Two", "b")
	req.Header.Add("X-Two", "a")
	req.Header.Set("User-Agent", "test")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestRun_TellsWhoAsks(t *testing.T) {
	r := start(t)
	host, _ := os.Hostname()
	status, got := r.get(t, "/some/path?q=1")
	client := strings.TrimPrefix(strings.Split(got, "\n")[1], "client: 127.0.0.1:")
	want := "hostname: " + host + "\nclient: 127.0.0.1:" + client + "\nserver: " + r.addr + "\npath: /some/path?q=1\n" +
		"Connection: close\nHost: " + r.addr + "\nUser-Agent: test\nX-Two: a\nX-Two: b\n"
	if status != 200 || got != want {
		t.Errorf("got %d:\n%s\nwant:\n%s", status, got, want)
	}
	for path, want := range map[string]int{"/health": 200, "/slow?ms=1": 200, "/slow": 400, "/slow?ms=x": 400, "/exit": 400, "/exit?code=256": 400} {
		if status, _ := r.get(t, path); status != want {
			t.Errorf("%s: got %d, want %d", path, status, want)
		}
	}
	if out := r.out.String(); !strings.Contains(out, "GET /health from 127.0.0.1:") {
		t.Errorf("got %q", out)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestRun_EchoesOnUDPAndWhatIsNotHTTP(t *testing.T) {
	r := start(t)
	for _, network := range []string{"udp", "tcp"} {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), network, r.addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"GETTING on", "x"} {
			buf := make([]byte, len(text))
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
				t.Errorf("%s: got %q, %v", network, buf, err)
			}
		}
		defer func() { _ = c.Close() }() // the end must not wait for it
	}
	silent, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("open connections hold up the end")
	}
}

func TestRun_EndsWhenAskedAndAnswersFirst(t *testing.T) {
	r := start(t)
	if status, _ := r.get(t, "/exit?code=7"); status != 200 {
		t.Errorf("got %d", status)
	}
	if exit, ok := errors.AsType[*hello.ExitError](<-r.done); !ok || exit.Code != 7 {
		t.Errorf("got %v", exit)
	}

	r = start(t)
	answered := make(chan int, 1)
	go func() {
		status, _ := r.get(t, "/slow?ms=300")
		answered <- status
	}()
	for !strings.Contains(r.out.String(), "/slow") {
		time.Sleep(time.Millisecond)
	}
	r.stop()
	if status := <-answered; status != 200 {
		t.Errorf("got %d", status)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// A request that is on its way while the end is asked for, on a connection that
// is kept alive, is answered too.
func TestRun_TellsThoseWhoKeepConnectionsOpen(t *testing.T) {
	r := start(t)
	web := &http.Transport{}
	defer web.CloseIdleConnections()
	ask := func() (status int, last bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/", strings.NewReader("not asked twice"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := web.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		return res.StatusCode, res.Close
	}
	if _, last := ask(); last {
		t.Error("the connection is not kept alive")
	}
	r.stop()
	if status, last := ask(); status != http.StatusOK || !last {
		t.Errorf("got %d, the last of its connection: %t", status, last)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestRun_RefusesAPortInUse(t *testing.T) {
	r := start(t)
	if err := hello.Run(t.Context(), hello.Config{Listen: r.addr, Out: io.Discard}); err == nil || !strings.Contains(err.Error(), r.addr) {
		t.Errorf("got %v", err)
	}
}
