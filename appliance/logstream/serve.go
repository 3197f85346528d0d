package logstream

import (
	"context"
	"encoding/base64"
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
)

// Local reads the logs of a node's own tasks, of which only the ID matters.
type Local interface {
	TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error]
}

// Server tells managers what the tasks of this node wrote.
type Server struct {
	local  Local
	limit  *rate.Limiter
	logger *slog.Logger
}

// NewServer is a Server of local's logs.
func NewServer(local Local, logger *slog.Logger) *Server {
	return &Server{local: local, limit: rate.NewLimiter(bandwidth, bandwidth/10), logger: logger}
}

// Route adds the server to what a node serves to managers.
func (s *Server) Route(mux *http.ServeMux) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		q, err := parseQuery(r.URL.Query().Get("query"))
		if err != nil {
			control.Refuse(w, object.Errorf(errdefs.ErrInvalidArgument, "query of a log: %v", err))
			return
		}
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
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newSender(w, cancel)
	defer out.stop()
	w.Header().Set("Content-Type", "application/octet-stream")
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
		if err := out.send(&frame{Line: &line}); err != nil {
			return err
		}
	}
	return out.send(end)
}

// sender writes frames. Those that come together leave together, and when none
// come a sign of life does.
type sender struct {
	flush func() error
	gone  func() // called when the reader is found to be gone

	mu sync.Mutex
	// Everything below is guarded by mu.
	w   http.ResponseWriter
	buf []byte
	// timer flushes what was sent if dirty, and else sends a sign of life.
	timer *time.Timer
	dirty bool
	done  bool // w may not be touched any more
}

func newSender(w http.ResponseWriter, gone func()) *sender {
	return &sender{w: w, flush: http.NewResponseController(w).Flush, gone: gone}
}

// start begins the answer with a sign of life: the reader waits for it.
func (s *sender) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(beat, s.fire)
	return s.aliveLocked()
}

func (s *sender) send(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeLocked(f); err != nil {
		return err
	}
	if !s.dirty {
		s.dirty = true
		s.timer.Reset(flushDelay)
	}
	return nil
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
	return s.flush()
}

func (s *sender) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return
	}
	send := s.aliveLocked
	if s.dirty {
		send = s.flush
	}
	s.dirty = false
	if send() != nil {
		s.gone()
		return
	}
	s.timer.Reset(beat)
}

// stop must come before the handler's return. What is left is sent by the server.
func (s *sender) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	if s.timer != nil {
		s.timer.Stop()
	}
}
