package engine

import (
	"bytes"
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
	// buf is the last frame; guarded by mu.
	buf []byte
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
		// One write, because clients take what they read at once for a whole.
		o.buf = append(o.buf[:0], o.stream, 0, 0, 0)
		o.buf = binary.BigEndian.AppendUint32(o.buf, uint32(len(p)))
		o.buf = append(o.buf, p...)
		frame = o.buf
	}
	if _, err := o.w.Write(frame); err != nil {
		return 0, err
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
	soon := &flusher{w: w}
	defer soon.stop()
	f := &frames{w: soon, raw: tty}
	begun := false
	begin := func() (err error) {
		begun = true
		soon.flush, err = flushed(w, streamType(r, tty))
		return err
	}
	// A client that follows waits for the headers, not for the first line.
	if q.Follow {
		if err := begin(); err != nil {
			return err
		}
	}
	var text []byte
	stdout, stderr, unfinished := f.stdout(), f.stderr(), partial{}
	for {
		line, err, more := next()
		switch {
		case !more && begun:
			return nil
		case !more:
			return begin()
		case err != nil:
			return err
		}
		if !begun {
			if err := begin(); err != nil {
				return err
			}
		}
		out := stdout
		if line.Stderr {
			out = stderr
		}
		text = q.format(text[:0], line, unfinished.continues(line))
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
}

// partial holds the sources whose last piece did not end its line: what comes
// next from there continues it.
type partial map[string]bool

func (p partial) continues(line logEntry) bool {
	source := line.details
	if line.Stderr {
		source += "\x00"
	}
	continues := p[source]
	delete(p, source)
	if !bytes.HasSuffix(line.Text, []byte("\n")) {
		p[source] = true
	}
	return continues
}

// flushDelay bounds how long a line waits for the next, so that lines that
// come together, as a log's past does, leave together.
const flushDelay = 5 * time.Millisecond

// flusher sends what was written soon after.
type flusher struct {
	mu sync.Mutex
	// Everything below is guarded by mu.
	w     io.Writer
	flush func() error
	// timer runs while something written waits to be sent.
	timer *time.Timer
	// done is set when w may not be touched any more.
	done bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	if f.timer == nil && err == nil {
		f.timer = time.AfterFunc(flushDelay, f.fire)
	}
	return n, err
}

func (f *flusher) fire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = nil
	if !f.done {
		// A client that is gone shows at the next Write.
		_ = f.flush()
	}
}

// stop must come before the handler's return. What is left is sent by the server.
func (f *flusher) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = true
	if f.timer != nil {
		f.timer.Stop()
	}
}

// timeLayout is RFC 3339 with all nine digits, so that lines align.
const timeLayout = "2006-01-02T15:04:05.000000000Z07:00"

// format appends a line to b, with time and details before the text once a
// line; but where several logs are merged, each piece says whose it is.
func (q logRequest) format(b []byte, line logEntry, continues bool) []byte {
	if continues && !q.details {
		return append(b, line.Text...)
	}
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
