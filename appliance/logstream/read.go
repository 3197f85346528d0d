package logstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/store/object"
)

const (
	// beginTime is how long a node may take to begin.
	beginTime = 5 * time.Second
	// silence is how long a node may say nothing: some beats.
	silence = 3 * beat
	// retry is the time between looks at whether a node is back.
	retry = time.Second
)

// Directory is what a manager knows of the swarm.
type Directory interface {
	// Node is what a node is called, and whether it is known to be down.
	Node(id string) (name string, down bool)
	// HasTask reports whether there is such a task.
	HasTask(id string) bool
}

// Config is what a Reader needs; all of it is required.
type Config struct {
	// NodeID is this node's.
	NodeID func() string
	// Local reads the logs of this node's tasks.
	Local Local
	// Connect opens a connection to what another node serves to managers.
	Connect func(ctx context.Context, node string) (net.Conn, error)
	// Directory may be behind.
	Directory Directory
}

// Reader reads the logs of all nodes' tasks.
type Reader struct{ cfg Config }

// NewReader is a Reader without connections: each log has its own.
func NewReader(cfg Config) *Reader { return &Reader{cfg: cfg} }

// TaskLogs reads a task's log. What is missing of it, because its node is not
// there, is an error of the kind unavailable that names the node. Whoever
// follows gets it as a line on stderr, and the rest of the log when the node is
// back; then the log ends with the task, if not before.
func (r *Reader) TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	if task.NodeID == r.cfg.NodeID() {
		return r.cfg.Local.TaskLogs(ctx, task, q)
	}
	if q.Follow {
		return r.follow(ctx, task, q)
	}
	return func(yield func(object.LogLine, error) bool) { r.read(ctx, task, q)(yield) }
}

// follow reads on when the node is back.
func (r *Reader) follow(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		told := false // that the node is not there
		for {
			var broken error
			for line, err := range r.read(ctx, task, q) {
				if err != nil {
					broken = err
					break
				}
				told = false
				// What was read is not read again.
				q.Since, q.Tail = line.Time.Add(time.Nanosecond), -1
				if !yield(line, nil) {
					return
				}
			}
			switch {
			case broken == nil:
				return
			case ctx.Err() != nil:
				yield(object.LogLine{}, context.Cause(ctx))
				return
			case !errors.Is(broken, errNotThere):
				yield(object.LogLine{}, broken)
				return
			case !told:
				told = true
				if !yield(object.Warning(time.Now(), broken), nil) {
					return
				}
			}
			if !r.awaitNode(ctx, task) {
				return
			}
		}
	}
}

// awaitNode returns when it is worth asking the task's node again; false means
// that it never will be.
func (r *Reader) awaitNode(ctx context.Context, task *object.Task) bool {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
		if !r.cfg.Directory.HasTask(task.ID) {
			return false
		}
		if _, down := r.cfg.Directory.Node(task.NodeID); !down {
			return true
		}
	}
}

// read reads a log once from another node.
func (r *Reader) read(outer context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		ctx, cancel := context.WithCancelCause(outer)
		defer cancel(nil)
		// The watchdog ends the request when the node is silent while it is read.
		watchdog := time.AfterFunc(beginTime, func() { cancel(errSilent) })
		defer watchdog.Stop()
		conn, in, err := r.ask(ctx, task, q)
		if err != nil {
			yield(object.LogLine{}, err)
			return
		}
		buf, size := make([]byte, maxFrame), 0
		for {
			watchdog.Reset(silence)
			f, n, err := readFrame(in, buf)
			if err == nil && f != nil && f.Line != nil {
				acknowledge(conn, &size, n)
			}
			watchdog.Stop()
			switch {
			case err != nil:
				yield(object.LogLine{}, r.broken(ctx, task.NodeID, "disconnected unexpectedly", err))
				return
			case f == nil:
			case f.Line != nil:
				if !yield(*f.Line, nil) {
					return
				}
			default:
				if f.Err != nil {
					yield(object.LogLine{}, f.Err.Err())
				}
				return
			}
		}
	}
}

// acknowledge tells the node of each part that was read before the line of n
// bytes that came now: it counts as [sender.sendLine] does. A node that has sent
// all may have hung up; whether it did is for reading to find out.
func acknowledge(w io.Writer, size *int, n int) {
	if *size < part {
		*size += n
		return
	}
	*size = n
	_, _ = w.Write([]byte{0})
}

var (
	// errNotThere is the kind of what is missing because of the node.
	errNotThere = fmt.Errorf("the node is not there: %w", errdefs.ErrUnavailable)
	errSilent   = errors.New("it does not answer")
)

// ask sends the request; the frames come by the reader. The connection is
// closed when ctx ends.
func (r *Reader) ask(ctx context.Context, task *object.Task, q object.LogQuery) (net.Conn, *bufio.Reader, error) {
	if name, down := r.cfg.Directory.Node(task.NodeID); down {
		return nil, nil, object.Errorf(errNotThere, "node %s is not available: it is down", name)
	}
	query, err := formatQuery(q)
	if err != nil {
		return nil, nil, fmt.Errorf("encode query of a log: %w", err)
	}
	path := "/tasks/" + task.ID + "/logs?" + url.Values{"query": {query}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("ask for log of task %s: %w", task.ID, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	conn, err := r.cfg.Connect(ctx, task.NodeID)
	if err != nil {
		return nil, nil, r.broken(ctx, task.NodeID, "is not available", err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	in := bufio.NewReaderSize(conn, part)
	resp, err := exchange(conn, in, req)
	if err != nil {
		return nil, nil, r.broken(ctx, task.NodeID, "is not available", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, refusal(resp)
	}
	return conn, in, nil
}

func exchange(w io.Writer, r *bufio.Reader, req *http.Request) (*http.Response, error) {
	if err := req.Write(w); err != nil {
		return nil, err
	}
	return http.ReadResponse(r, req)
}

// refusal is why a node does not give a log.
func refusal(resp *http.Response) error {
	why := new(wire.Refusal)
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxFrame))
	if err == nil && len(b) > 0 {
		err = object.Decode(b, why)
	}
	if err != nil || why.Text == "" {
		return fmt.Errorf("node answers %s", resp.Status)
	}
	return why.Err()
}

// broken is the error that a log's missing part is.
func (r *Reader) broken(ctx context.Context, node, what string, err error) error {
	name, down := r.cfg.Directory.Node(node)
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errSilent):
		err = cause
	case cause != nil:
		return cause
	case down:
		err = errors.New("it is down")
	}
	return object.Errorf(errNotThere, "node %s %s: %v", name, what, err)
}
