package share

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"skep/appliance/wire/control"
	"skep/store/object"
)

const (
	// maxRelays is how many blobs a manager relays at a time; others wait.
	maxRelays = 128
	queueWait = time.Minute
	// maxFromNode is how many blobs one node gives at a time. What they may have
	// under way must leave room on the node's connection to this manager.
	maxFromNode = 8
	// maxPerNode is how many blobs one node may be waiting for or getting: fewer
	// than another gives, so that none can keep it from the others.
	maxPerNode = 6
	// grudge is how long a node that did not answer is asked after all others:
	// that it is gone is known only after some beats.
	grudge = 30 * time.Second
	// headerWait is how long a node may take to begin; it may make the blob.
	headerWait = 30 * time.Second
	idleWait   = 30 * time.Second
	// maxAvoid is how many nodes a request may rule out.
	maxAvoid = 32
)

// RelayConfig is what a Relay needs; all of it is required.
type RelayConfig struct {
	NodeID func() string // of this manager
	Local  Local
	// Leading is nil when this manager leads, and else control's NotLeader.
	Leading func() error
	// Directory knows the nodes that have an image.
	Directory Directory
	// Connect opens a connection to a node's own [Handler].
	Connect func(ctx context.Context, node string) (net.Conn, error)
	// From is the node that sent a request.
	From   func(ctx context.Context) string
	Logger *slog.Logger
}

// Relay serves a manager's own blobs at [Pattern], and while it leads those of
// all nodes.
type Relay struct {
	cfg       RelayConfig
	transport *http.Transport
	slots     chan struct{} // one in it for each transfer

	mu     sync.Mutex
	to     map[string]int       // guarded by mu: requests by who asked
	by     map[string]int       // guarded by mu: transfers by who gives
	failed map[string]time.Time // guarded by mu: when a node last did not answer
}

// NewRelay is a relay that has no connections yet.
func NewRelay(cfg RelayConfig) *Relay {
	return &Relay{
		cfg: cfg,
		transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				node, _, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				return cfg.Connect(ctx, node)
			},
			DisableCompression:    true,
			MaxConnsPerHost:       maxFromNode,
			MaxIdleConnsPerHost:   4,
			IdleConnTimeout:       idleWait,
			ResponseHeaderTimeout: headerWait,
			ReadBufferSize:        64 << 10,
		},
		slots: make(chan struct{}, maxRelays),
		to:    map[string]int{}, by: map[string]int{}, failed: map[string]time.Time{},
	}
}

// Close closes the connections to nodes that are not in use.
func (r *Relay) Close() { r.transport.CloseIdleConnections() }

func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := r.serve(w, req); err != nil {
		control.Refuse(w, err)
	}
}

// serve answers a request, or returns why not when nothing was answered yet.
func (r *Relay) serve(w http.ResponseWriter, req *http.Request) error {
	d := digest.Digest(req.PathValue("digest"))
	if err := d.Validate(); err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "digest %.100q: %v", string(d), err)
	}
	avoid := req.URL.Query()["avoid"]
	if len(avoid) > maxAvoid {
		avoid = avoid[len(avoid)-maxAvoid:]
	}
	from := r.cfg.From(req.Context())
	if !slices.Contains(avoid, r.cfg.NodeID()) && from != r.cfg.NodeID() {
		err := serveOwn(w, req, r.cfg.NodeID(), r.cfg.Local)
		if err == nil || !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := r.cfg.Leading(); err != nil {
		return err
	}
	if err := r.begin(req.Context(), from); err != nil {
		return err
	}
	defer r.end(from)
	return r.relay(w, req, from, avoid)
}

// relay finds a node that gives the blob.
func (r *Relay) relay(w http.ResponseWriter, req *http.Request, from string, avoid []string) error {
	d := digest.Digest(req.PathValue("digest"))
	for _, node := range r.holders(digest.Digest(req.URL.Query().Get("image"))) {
		if node == from || node == r.cfg.NodeID() || slices.Contains(avoid, node) {
			continue
		}
		err := r.pass(w, req, node, d)
		if err == nil {
			return nil
		}
		if gone := context.Cause(req.Context()); gone != nil {
			return gone
		}
		r.cfg.Logger.InfoContext(req.Context(), "could not get blob from node", "node", node, "blob", d, "err", err)
	}
	return notFound(r.cfg.Directory, "no node has blob %s", d)
}

// begin waits for room for a transfer.
func (r *Relay) begin(ctx context.Context, from string) error {
	r.mu.Lock()
	full := r.to[from] >= maxPerNode
	if !full {
		r.to[from]++
	}
	r.mu.Unlock()
	if full {
		return errBusy()
	}
	timer := time.NewTimer(queueWait)
	defer timer.Stop()
	select {
	case r.slots <- struct{}{}:
		return nil
	case <-timer.C:
		r.leave(from)
		return errBusy()
	case <-ctx.Done():
		r.leave(from)
		return context.Cause(ctx)
	}
}

func errBusy() error {
	return object.Errorf(errdefs.ErrResourceExhausted, "too many blobs are on their way, try again")
}

func (r *Relay) end(from string) {
	<-r.slots
	r.leave(from)
}

func (r *Relay) leave(from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to[from]--; r.to[from] == 0 {
		delete(r.to, from)
	}
}

// holders are the nodes that have an image: those that answer before those that
// did not, and those that have least to do first.
func (r *Relay) holders(image digest.Digest) []string {
	nodes := slices.Clone(r.cfg.Directory.Holders(image))
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failed, func(_ string, at time.Time) bool { return time.Since(at) > grudge })
	slices.SortStableFunc(nodes, func(a, b string) int {
		return cmp.Or(r.failed[a].Compare(r.failed[b]), r.by[a]-r.by[b])
	})
	return nodes
}

// fail notes that a node did not answer.
func (r *Relay) fail(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed[node] = time.Now()
}

// ask asks a node for a blob. The size of what comes is known.
func (r *Relay) ask(req *http.Request, node string, d digest.Digest) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(node, "80"), Path: "/blobs/" + d.String()}
	out, err := http.NewRequestWithContext(req.Context(), req.Method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if ranges := req.Header.Get("Range"); ranges != "" {
		out.Header.Set("Range", ranges)
	}
	resp, err := r.transport.RoundTrip(out)
	if err != nil {
		if req.Context().Err() == nil {
			r.fail(node)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent || resp.ContentLength < 0 {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("node answers %s", resp.Status)
	}
	return resp, nil
}

// pass hands a node's blob on. It fails only when nothing was answered yet; if
// the blob breaks off later its length tells whoever asked.
func (r *Relay) pass(w http.ResponseWriter, req *http.Request, node string, d digest.Digest) error {
	r.count(node, 1)
	defer r.count(node, -1)
	resp, err := r.ask(req, node, d)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	h := w.Header()
	for _, key := range []string{"Content-Length", "Content-Range", "Content-Type"} {
		if v := resp.Header.Get(key); v != "" {
			h.Set(key, v)
		}
	}
	h.Set(holderHeader, node)
	w.WriteHeader(resp.StatusCode)
	p := newPatient(w)
	defer p.done()
	if err := copyBlob(p, resp.Body); err != nil {
		r.cfg.Logger.InfoContext(req.Context(), "blob broke off", "node", node, "blob", d, "err", err)
	}
	return nil
}

// count counts what a node gives.
func (r *Relay) count(node string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by[node] += n; r.by[node] == 0 {
		delete(r.by, node)
	}
}
