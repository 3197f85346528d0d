package logstream

import (
	"bufio"
	"context"
	"encoding/base64"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/time/rate"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/store/object"
)

const (
	// pattern is where a node's mux has the logs of its tasks.
	pattern = "GET /tasks/{id}/logs"
	// beat is the longest time between two frames, if the reader takes them.
	beat = 2 * time.Second
	// bandwidth is what all readers of a node's logs together get, in bytes a
	// second: a node that has much to tell still has to work.
	bandwidth = 10 << 20
	// flushDelay bounds how long a line waits for the next.
	flushDelay = 5 * time.Millisecond
	// maxReaders is how many logs a node sends at once. They leave room for
	// other streams on the node's connection to the manager that leads.
	maxReaders = 48
	// part is how many bytes of lines the reader acknowledges, by one byte, and
	// maxParts how many parts may be on their way or wait to be read. A log that
	// nobody reads on must not fill the connection that it shares with others.
	part     = 16 << 10
	maxParts = 2

	// protocol is what the connection becomes.
	protocol = "skep-log"
)

// Local reads the logs of a node's own tasks, of which only the ID matters.
type Local interface {
	TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error]
}

// Server tells managers what the tasks of this node wrote.
type Server struct {
	local  Local
	limit  *rate.Limiter
	slots  chan struct{} // one in it for each reader
	logger *slog.Logger
}

// NewServer is a Server of local's logs.
func NewServer(local Local, logger *slog.Logger) *Server {
	return &Server{local: local, limit: rate.NewLimiter(bandwidth, bandwidth/10), slots: make(chan struct{}, maxReaders), logger: logger}
}

// Route adds the server to what a node serves to managers.
func (s *Server) Route(mux *http.ServeMux) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		q, err := parseQuery(r.URL.Query().Get("query"))
		if err != nil {
			control.Refuse(w, object.Errorf(errdefs.ErrInvalidArgument, "query of a log: %v", err))
			return
		}
		select {
		case s.slots <- struct{}{}:
		default:
			control.Refuse(w, object.Errorf(errdefs.ErrResourceExhausted, "too many logs of the node are being read"))
			return
		}
		defer func() { <-s.slots }()
		if err := s.serve(w, r, q); err != nil && r.Context().Err() == nil {
			s.logger.DebugContext(r.Context(), "broke off log", "task", r.PathValue("id"), "err", err)
		}
	})
}

func formatQuery(q object.LogQuery) (string, error) {
	b, err := object.Encode(q)
	return base64.RawURLEncoding.EncodeToString(b), err
}

func parseQuery(text string) (q object.LogQuery, err error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return q, err
	}
	return q, object.Decode(b, &q)
}

// serve sends the log and its end. The reader sees a broken-off answer by the
// missing end.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, q object.LogQuery) error {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	out := newSender(conn, cancel)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer conn.Close() // and so ends the listening
	defer out.stop()
	defer cancel()
	listening.Go(func() { out.listen(rw) })
	if err := out.start(); err != nil {
		return err
	}
	end := &frame{End: true}
	for line, err := range s.local.TaskLogs(ctx, &object.Task{ID: r.PathValue("id")}, q) {
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			end.Err = wire.Refuse(err)
			break
		}
		if err := s.limit.WaitN(ctx, min(len(line.Text), s.limit.Burst())); err != nil {
			return err
		}
		if err := out.sendLine(ctx, &line); err != nil {
			return err
		}
	}
	return out.sendEnd(end)
}

// sender writes frames. Those that come together leave together, and when none
// come a sign of life does.
type sender struct {
	gone func() // called when the reader is found to be gone
	// parts has one in it for each part that was not acknowledged.
	parts chan struct{}
	size  int // of the part that is being sent; owned by sendLine

	mu sync.Mutex
	// Everything below is guarded by mu.
	w   *bufio.Writer
	buf []byte
	// timer flushes what was sent if dirty, and else sends a sign of life.
	timer *time.Timer
	dirty bool
	done  bool // w may not be touched any more
}

func newSender(w io.Writer, gone func()) *sender {
	return &sender{w: bufio.NewWriterSize(w, part), gone: gone, parts: make(chan struct{}, maxParts)}
}

// listen takes the reader's acknowledgements until it goes.
func (s *sender) listen(r io.ByteReader) {
	defer s.gone()
	for {
		if _, err := r.ReadByte(); err != nil {
			return
		}
		select {
		case <-s.parts:
		default:
			return // more than was sent
		}
	}
}

// start begins the answer with a sign of life: the reader waits for it.
func (s *sender) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(beat, s.fire)
	if _, err := s.w.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"); err != nil {
		return err
	}
	return s.aliveLocked()
}

// sendLine sends a line when the reader has taken enough of those before.
func (s *sender) sendLine(ctx context.Context, line *object.LogLine) error {
	if s.size >= part {
		s.size = 0
		select {
		case s.parts <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeLocked(&frame{Line: line}); err != nil {
		return err
	}
	s.size += len(s.buf)
	if !s.dirty {
		s.dirty = true
		s.timer.Reset(flushDelay)
	}
	return nil
}

func (s *sender) sendEnd(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeLocked(f); err != nil {
		return err
	}
	return s.w.Flush()
}

func (s *sender) writeLocked(f *frame) (err error) {
	if s.buf, err = appendFrame(s.buf[:0], f); err == nil {
		_, err = s.w.Write(s.buf)
	}
	return err
}

func (s *sender) aliveLocked() error {
	if err := s.writeLocked(nil); err != nil {
		return err
	}
	return s.w.Flush()
}

func (s *sender) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return
	}
	send := s.aliveLocked
	if s.dirty {
		send = s.w.Flush
	}
	s.dirty = false
	if send() != nil {
		s.gone()
		return
	}
	s.timer.Reset(beat)
}

// stop ends the signs of life.
func (s *sender) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	if s.timer != nil {
		s.timer.Stop()
	}
}
