package engine

import (
	"encoding/binary"
	"io"
	"iter"
	"net/http"
	"strconv"
	"sync"
	"time"

	"skep/store/object"
)

// The content types of streams, in which stdout and stderr come in frames or raw.
const (
	typeRaw         = "application/vnd.docker.raw-stream"
	typeMultiplexed = "application/vnd.docker.multiplexed-stream"
)

// streamType is the content type of a container's output for this client.
func streamType(r *http.Request, tty bool) string {
	if tty || minorOf(r) < 42 {
		return typeRaw
	}
	return typeMultiplexed
}

// frames puts the two outputs of a container into one stream. It is safe for
// concurrent use; each Write of an output is one frame.
type frames struct {
	mu sync.Mutex
	// w is guarded by mu.
	w io.Writer
	// raw leaves the frames out: a terminal has one output.
	raw bool
	// flush, if not nil, sends what was written on its way; guarded by mu.
	flush func() error
}

// output is one of the two outputs of frames.
type output struct {
	*frames
	stream byte
}

func (f *frames) stdout() io.Writer { return output{f, 1} }
func (f *frames) stderr() io.Writer { return output{f, 2} }

func (o output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	frame := p
	if !o.raw {
		frame = make([]byte, 8, 8+len(p))
		frame[0] = o.stream
		binary.BigEndian.PutUint32(frame[4:], uint32(len(p)))
		frame = append(frame, p...)
	}
	if _, err := o.w.Write(frame); err != nil {
		return 0, err
	}
	if o.flush != nil {
		if err := o.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// flushed begins a reply that is sent piece by piece.
func flushed(w http.ResponseWriter, contentType string) (flush func() error, err error) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	flush = http.NewResponseController(w).Flush
	return flush, flush()
}

// logRequest is what a client wants of a log, and in which form.
type logRequest struct {
	object.LogQuery
	timestamps, details bool
}

func parseLogRequest(r *http.Request) (logRequest, error) {
	q := logRequest{timestamps: flag(r, "timestamps"), details: flag(r, "details")}
	q.Stdout, q.Stderr, q.Follow = flag(r, "stdout"), flag(r, "stderr"), flag(r, "follow")
	if !q.Stdout && !q.Stderr {
		return q, invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	var err error
	if q.Since, err = instant(r, "since"); err != nil {
		return q, err
	}
	if q.Until, err = instant(r, "until"); err != nil {
		return q, err
	}
	q.Tail = -1
	if n, err := strconv.Atoi(param(r, "tail")); err == nil && n >= 0 {
		q.Tail = n
	}
	return q, nil
}

// logEntry is a line together with its details, already escaped and joined.
type logEntry struct {
	object.LogLine
	details string
}

// writeLog answers with the log's lines, one frame each, as they come. An
// error before the first line becomes the reply; a later one ends it.
func writeLog(w http.ResponseWriter, r *http.Request, q logRequest, tty bool, lines iter.Seq2[logEntry, error]) error {
	next, stop := iter.Pull2(lines)
	defer stop()
	f := &frames{w: w, raw: tty}
	begin := func() (err error) {
		f.flush, err = flushed(w, streamType(r, tty))
		return err
	}
	// A client that follows waits for the headers, not for the first line.
	if q.Follow {
		if err := begin(); err != nil {
			return err
		}
	}
	for {
		line, err, more := next()
		switch {
		case !more && f.flush == nil:
			return begin()
		case !more:
			return nil
		case err != nil:
			return err
		}
		if f.flush == nil {
			if err := begin(); err != nil {
				return err
			}
		}
		out := f.stdout()
		if line.Stderr {
			out = f.stderr()
		}
		if _, err := out.Write(q.format(line)); err != nil {
			return err
		}
	}
}

// timeLayout is RFC 3339 with all nine digits, so that lines align.
const timeLayout = "2006-01-02T15:04:05.000000000Z07:00"

func (q logRequest) format(line logEntry) []byte {
	var b []byte
	if q.timestamps {
		b = append(line.Time.UTC().AppendFormat(b, timeLayout), ' ')
	}
	if q.details {
		b = append(append(b, line.details...), ' ')
	}
	return append(b, line.Text...)
}

// plain makes log entries of a container's own log, which has no details.
func plain(lines iter.Seq2[object.LogLine, error]) iter.Seq2[logEntry, error] {
	return func(yield func(logEntry, error) bool) {
		for line, err := range lines {
			if !yield(logEntry{LogLine: line}, err) {
				return
			}
		}
	}
}

// deadline is a timer for t that never fires for the zero time.
func deadline(t time.Time) (<-chan time.Time, func() bool) {
	if t.IsZero() {
		return nil, func() bool { return true }
	}
	timer := time.NewTimer(time.Until(t))
	return timer.C, timer.Stop
}
