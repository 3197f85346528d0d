package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

const (
	// reachTime is how long another node may take to be reached.
	reachTime = 5 * time.Second
	// replyTime is how long it may take to begin its reply.
	replyTime = 15 * time.Second
	// minPrefix is the least of a container's ID that finds it on another node:
	// what docker prints.
	minPrefix = 12
)

// Who asks a node for something is told in these headers, for its record.
const (
	managerHeader = "Skep-Manager"
	callerHeader  = "Skep-Caller"
)

// place is where a container, or what was started in one, is.
type place struct {
	// ref is what it is called there.
	ref string
	// node is nil for this node.
	node *object.Node
	// task is the one whose container it is, on another node.
	task *object.Task
}

// anywhere is h for what is on this node, and else the same request to the
// node that it is on. Who may make it was decided before.
func (a *API) anywhere(pattern string, h handler) handler {
	locate := a.locateContainer
	switch {
	case isExec(pattern):
		locate = a.locateExec
	case pattern == inspectPattern:
		locate = a.locateNamed
	}
	ask := a.pass
	if becomesStream(pattern) {
		ask = a.join
	}
	return func(w http.ResponseWriter, r *http.Request) error { return a.route(w, r, locate, h, ask) }
}

// route leads a request to where what it is about is.
func (a *API) route(w http.ResponseWriter, r *http.Request, locate func(context.Context, string) (place, error),
	here handler, there func(http.ResponseWriter, *http.Request, place) error,
) error {
	if a.Connect == nil {
		return here(w, r)
	}
	p, err := locate(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	r.SetPathValue("id", p.ref)
	if p.node == nil {
		return here(w, r)
	}
	return there(w, r, p)
}

// logsAnywhere is a container's log. On another node it is its task's, which
// is made for being read from afar.
func (a *API) logsAnywhere(w http.ResponseWriter, r *http.Request) error {
	read := func(w http.ResponseWriter, r *http.Request, p place) error {
		q, err := parseLogRequest(r)
		if err != nil {
			return err
		}
		s, err := a.Swarm.Replica()
		if err != nil {
			return err
		}
		return writeLog(w, r, q, hasTTY(s, p.task), plain(a.TaskLogs.TaskLogs(r.Context(), p.task, q.LogQuery)))
	}
	return a.route(w, r, a.locateContainer, a.containerLogs, read)
}

// locateContainer finds a container by its ID or name, or by its task's ID.
// What is nowhere is for this node to deny.
func (a *API) locateContainer(ctx context.Context, ref string) (place, error) {
	return a.find(ctx, ref, func(s *store.Snapshot) (*object.Task, error) {
		if t, ok := s.Tasks.Get(ref); ok {
			return t, nil
		}
		return taskOfContainer(s, ref)
	})
}

// locateNamed does not take a task's ID: "docker inspect" looks among the
// containers first, and who gives it that wants the task.
func (a *API) locateNamed(ctx context.Context, ref string) (place, error) {
	return a.find(ctx, ref, func(s *store.Snapshot) (*object.Task, error) { return taskOfContainer(s, ref) })
}

func (a *API) find(ctx context.Context, ref string, find func(*store.Snapshot) (*object.Task, error)) (place, error) {
	here := place{ref: ref}
	if _, err := a.Containers.Inspect(ctx, ref, false); !errdefs.IsNotFound(err) {
		return here, nil
	}
	s, err := a.Swarm.Replica()
	if err != nil {
		return here, nil //nolint:nilerr // Who is no manager knows of no other nodes.
	}
	t, err := find(s)
	if err != nil || t == nil {
		return here, err
	}
	name := taskName(s, t)
	if c := t.Status.ContainerStatus; c != nil && c.ContainerID != "" {
		name = c.ContainerID
	}
	if t.NodeID == "" {
		return here, object.Errorf(errdefs.ErrUnavailable, "task %s has not been scheduled", t.ID)
	}
	p, err := a.at(ctx, s, t.NodeID, name)
	p.task = t
	return p, err
}

// at is something on a node.
func (a *API) at(ctx context.Context, s *store.Snapshot, node, ref string) (place, error) {
	if node == a.Swarm.Info(ctx).NodeID {
		return place{ref: ref}, nil
	}
	n, ok := s.Nodes.Get(node)
	switch {
	case !ok:
		return place{}, object.Errorf(errdefs.ErrUnavailable, "node %s is not available: it is not part of the swarm any more", node)
	case n.Status.State == swarm.NodeStateDown:
		return place{}, notAvailable(n, errors.New("it is down"))
	}
	return place{ref: ref, node: n}, nil
}

// taskOfContainer is the task whose container has this name, or an ID that
// begins so; nil if there is none.
func taskOfContainer(s *store.Snapshot, ref string) (found *object.Task, err error) {
	ref = strings.TrimPrefix(ref, "/")
	if t, ok := s.Tasks.Get(ref[strings.LastIndexByte(ref, '.')+1:]); ok && taskName(s, t) == ref {
		return t, nil
	}
	if len(ref) < minPrefix {
		return nil, nil
	}
	for t := range s.Tasks.All() {
		c := t.Status.ContainerStatus
		if c == nil || !strings.HasPrefix(c.ContainerID, ref) {
			continue
		}
		if found != nil {
			return nil, invalid("multiple IDs found with provided prefix: %s", ref)
		}
		found = t
	}
	return found, nil
}

// execName is what a process that was started in a container is called. In a
// task's container the name says on which node it is, so that any manager can
// go on with what another one began.
func (a *API) execName(ctx context.Context, ref, id string) string {
	if a.Connect == nil {
		return id
	}
	node := a.Swarm.Info(ctx).NodeID
	if node == "" || a.mustBeOfTask(ctx, ref) != nil {
		return id
	}
	return node + "-" + id
}

func (a *API) locateExec(ctx context.Context, name string) (place, error) {
	node, id, ok := strings.Cut(name, "-")
	if !ok {
		return place{ref: name}, nil
	}
	if node == a.Swarm.Info(ctx).NodeID {
		return place{ref: id}, nil
	}
	s, err := a.Swarm.Replica()
	if err != nil {
		return place{ref: name}, nil //nolint:nilerr // Who is no manager knows of no other nodes.
	}
	return a.at(ctx, s, node, name)
}

// pass makes the request of another node, and its reply the reply.
func (a *API) pass(w http.ResponseWriter, r *http.Request, p place) error {
	body := r.Body
	if r.ContentLength == 0 {
		body = http.NoBody
	}
	req, err := a.request(r, p, body)
	if err != nil {
		return err
	}
	req.ContentLength = r.ContentLength
	resp, err := a.remote.RoundTrip(req)
	if err != nil {
		return a.unreached(r, p, err)
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	out := &prompt{w, http.NewResponseController(w).Flush}
	if err = out.flush(); err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

// prompt sends what is written at once.
type prompt struct {
	w     io.Writer
	flush func() error
}

func (p *prompt) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err == nil {
		err = p.flush()
	}
	return n, err
}

// request is r as another node is asked it.
func (a *API) request(r *http.Request, p place, body io.Reader) (*http.Request, error) {
	_, path, _ := strings.Cut(r.Pattern, " ")
	u := url.URL{
		Scheme: "http", Host: net.JoinHostPort(p.node.ID, "80"), RawQuery: r.URL.RawQuery,
		Path: "/v" + versionString(minorOf(r)) + strings.Replace(path, "{id}", p.ref, 1),
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if t := r.Header.Get("Content-Type"); t != "" {
		req.Header.Set("Content-Type", t)
	}
	a.introduce(r.Context(), req)
	return req, nil
}

// introduce tells the other node in whose name it is asked.
func (a *API) introduce(ctx context.Context, req *http.Request) {
	caller := admin.Caller(ctx)
	req.Header.Set(managerHeader, a.Swarm.Info(ctx).NodeID)
	req.Header.Set(callerHeader, strings.Trim(strconv.QuoteToASCII(caller.LogValue().String()+" "+caller.Detail), `" `))
}

// newRemote makes a connection for each request: nodes come and go.
func newRemote(connect func(context.Context, string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			node, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return reach(ctx, connect, node)
		},
		DisableCompression:    true,
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: replyTime,
	}
}

var errMute = errors.New("it does not answer")

func reach(ctx context.Context, connect func(context.Context, string) (net.Conn, error), node string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, reachTime, errMute)
	defer cancel()
	return connect(ctx, node)
}

// unreached is why another node did not reply.
func (a *API) unreached(r *http.Request, p place, err error) error {
	if r.Context().Err() != nil {
		return context.Cause(r.Context())
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		err = errMute
	}
	return notAvailable(p.node, err)
}

func notAvailable(n *object.Node, err error) error {
	name := n.Description.Hostname
	if name == "" {
		name = n.ID
	}
	// Of what kind its reason is does not matter to the client.
	return object.Errorf(errdefs.ErrUnavailable, "node %s is not available: %v", name, err)
}
