// Package hello is a small server that tells who asks it and how the question
// reached it: the demo of a service, and the probe of load balancing.
//
// On TCP it answers HTTP: any path with plain text, one "key: value" a line
// (hostname, client, server, path, then the request's headers by name), 200 on
// /health, after a while on /slow?ms=N, and /exit?code=N ends it. What is not
// HTTP is echoed, as is everything on UDP at the same port.
//
// It keeps nothing, trusts nobody and is not a web server for anything else.
package hello

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxSlow caps how long /slow waits.
const maxSlow = time.Minute

// grace is how long requests may go on after the end was asked for; containers
// are given ten seconds.
const grace = 8 * time.Second

// Config is where to listen and what to say about it.
type Config struct {
	// Listen is the address for both TCP and UDP; port 0 chooses one for both.
	Listen string
	// Out gets a line for each request.
	Out io.Writer
	// Ready, if set, is called with the address when both are open.
	Ready func(addr string)
}

// ExitError says that somebody asked for the end with this code.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return "asked to exit with code " + strconv.Itoa(e.Code) }

// Run serves until ctx ends, and then until open requests are answered and those
// who keep connections open have been told. If a request ends it, the error is an
// [ExitError].
func Run(ctx context.Context, c Config) error {
	tcp, udp, err := listen(ctx, c.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", c.Listen, err)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(c.Out, "listening on %s\n", tcp.Addr())
	if c.Ready != nil {
		c.Ready(tcp.Addr().String())
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	h := &server{host: host, out: c.Out, ending: ctx.Done(), end: end}
	open := newVisitors()
	web := &http.Server{Handler: h.routes(), ReadHeaderTimeout: 10 * time.Second, ConnState: open.count}
	split := newSplitter(tcp)

	g := new(errgroup.Group)
	g.Go(func() error { return failed(split.run(), end) })
	g.Go(func() error { return failed(web.Serve(split), end) })
	g.Go(func() error { return failed(echoPackets(udp), end) })
	g.Go(func() error {
		<-ctx.Done()
		open.wait()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		err := web.Shutdown(last) // closes split, and tcp with it
		split.wait()
		return errors.Join(ignoreLate(err), udp.Close())
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if exit, ok := errors.AsType[*ExitError](context.Cause(ctx)); ok {
		return exit
	}
	return nil
}

// failed ends the others if a part ended by itself.
func failed(err error, end context.CancelCauseFunc) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	end(err)
	return err
}

func ignoreLate(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// listen opens the same port for TCP and UDP.
func listen(ctx context.Context, addr string) (net.Listener, net.PacketConn, error) {
	var lc net.ListenConfig
	var err error
	// A port that was chosen for one may be taken for the other.
	for range 10 {
		var tcp net.Listener
		if tcp, err = lc.Listen(ctx, "tcp", addr); err != nil {
			return nil, nil, err
		}
		var udp net.PacketConn
		if udp, err = lc.ListenPacket(ctx, "udp", tcp.Addr().String()); err == nil {
			return tcp, udp, nil
		}
		_ = tcp.Close()
	}
	return nil, nil, err
}

func echoPackets(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(buf[:n], from) // lost, as packets may be
	}
}

type server struct {
	host   string
	out    io.Writer
	ending <-chan struct{} // closed when the end was asked for
	end    context.CancelCauseFunc
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.page)
	mux.HandleFunc("/slow", s.slow)
	mux.HandleFunc("/exit", s.exit)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Written at once, so that lines of several requests do not mix.
		_, _ = io.WriteString(s.out, r.Method+" "+r.URL.Path+" from "+r.RemoteAddr+"\n")
		select {
		case <-s.ending:
			w.Header().Set("Connection", "close")
		default:
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *server) page(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "hostname: %s\nclient: %s\nserver: %s\npath: %s\n",
		s.host, r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey), r.URL.RequestURI())
	var lines []string
	for name, values := range r.Header {
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	lines = append(lines, "Host: "+r.Host)
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, "\n") + "\n")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

func (s *server) slow(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.ParseUint(r.FormValue("ms"), 10, 32)
	if err != nil {
		http.Error(w, "want ?ms=N", http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(min(time.Duration(ms)*time.Millisecond, maxSlow))
	defer timer.Stop()
	select {
	case <-timer.C:
		s.page(w, r)
	case <-r.Context().Done():
	}
}

func (s *server) exit(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.ParseUint(r.FormValue("code"), 10, 8)
	if err != nil {
		http.Error(w, "want ?code=N, from 0 to 255", http.StatusBadRequest)
		return
	}
	w.Header().Set("Connection", "close")
	s.page(w, r)
	s.end(&ExitError{Code: int(code)})
}
