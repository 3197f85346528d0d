package hello

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// splitter hands on the connections that begin as HTTP does, as a listener,
// and echoes the others.
type splitter struct {
	net.Listener
	web   chan net.Conn
	ended chan struct{} // closed when run returns
	conns sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]struct{} // those that are not HTTP, or not yet; nil at the end
}

func newSplitter(l net.Listener) *splitter {
	return &splitter{
		Listener: l, web: make(chan net.Conn), ended: make(chan struct{}), open: map[net.Conn]struct{}{},
	}
}

// run accepts connections until the listener is closed.
func (s *splitter) run() error {
	defer close(s.ended)
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return err
		}
		s.conns.Go(func() { s.sort(c) })
	}
}

// Accept is the next connection that speaks HTTP.
func (s *splitter) Accept() (net.Conn, error) {
	select {
	case c := <-s.web:
		return c, nil
	case <-s.ended:
		return nil, net.ErrClosed
	}
}

// wait cuts off the connections that are not HTTP and waits until they are gone.
func (s *splitter) wait() {
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.conns.Wait()
}

// hold keeps a connection in reach of wait, unless that was called already.
func (s *splitter) hold(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *splitter) release(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *splitter) sort(c net.Conn) {
	if !s.hold(c) {
		_ = c.Close()
		return
	}
	head := make([]byte, 0, 16)
	for undecided(head) {
		n, err := c.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil {
			break
		}
	}
	if !speaksHTTP(head) {
		_, _ = io.Copy(c, io.MultiReader(bytes.NewReader(head), c))
		s.release(c)
		_ = c.Close()
		return
	}
	s.release(c)
	select {
	case s.web <- replayed{c, io.MultiReader(bytes.NewReader(head), c)}:
	case <-s.ended:
		_ = c.Close()
	}
}

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn
	r io.Reader
}

func (c replayed) Read(p []byte) (int, error) { return c.r.Read(p) }

func methods() []string {
	return []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodOptions, http.MethodTrace, http.MethodConnect,
	}
}

// undecided tells whether more bytes could make head the beginning of a request.
func undecided(head []byte) bool {
	for _, m := range methods() {
		if len(head) <= len(m) && strings.HasPrefix(m+" ", string(head)) {
			return true
		}
	}
	return false
}

func speaksHTTP(head []byte) bool {
	for _, m := range methods() {
		if strings.HasPrefix(string(head), m+" ") {
			return true
		}
	}
	return false
}
