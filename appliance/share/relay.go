package share

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"skep/store/object"
)

// What a manager relays at a time, in all and for one node.
const (
	maxRelays    = 128
	maxPerNode   = 16
	maxFromNode  = 32
	headerWait   = 30 * time.Second
	idleHolders  = 30 * time.Second
	maxAvoidance = 32
)

// RelayConfig is what a Relay needs; all of it is required.
type RelayConfig struct {
	NodeID string // of this manager
	Local  Local
	// Leading is nil when this manager leads, and else the error for who asks.
	Leading func() error
	// Holders are the nodes that have an image.
	Holders func(image digest.Digest) []string
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

	mu    sync.Mutex
	total int
	to    map[string]int // guarded by mu: transfers by who asked
	by    map[string]int // guarded by mu: transfers by who gives
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
			IdleConnTimeout:       idleHolders,
			ResponseHeaderTimeout: headerWait,
			ReadBufferSize:        64 << 10,
		},
		to: map[string]int{}, by: map[string]int{},
	}
}

// Close closes the connections to nodes that are not in use.
func (r *Relay) Close() { r.transport.CloseIdleConnections() }

func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := r.serve(w, req); err != nil {
		refuse(w, err)
	}
}

// serve answers a request, or returns why not when nothing was answered yet.
func (r *Relay) serve(w http.ResponseWriter, req *http.Request) error {
	d := digest.Digest(req.PathValue("digest"))
	if err := d.Validate(); err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "digest %.100q: %v", string(d), err)
	}
	q := req.URL.Query()
	avoid := q["avoid"]
	if len(avoid) > maxAvoidance {
		avoid = avoid[len(avoid)-maxAvoidance:]
	}
	from := r.cfg.From(req.Context())
	if !slices.Contains(avoid, r.cfg.NodeID) && from != r.cfg.NodeID {
		err := serveOwn(w, req, r.cfg.NodeID, r.cfg.Local)
		if err == nil || !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := r.cfg.Leading(); err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return nil
	}
	if err := r.begin(from); err != nil {
		return err
	}
	defer r.end(from)
	for _, node := range r.holders(digest.Digest(q.Get("image"))) {
		if node == from || node == r.cfg.NodeID || slices.Contains(avoid, node) {
			continue
		}
		resp, err := r.ask(req, node, d)
		if err != nil {
			if req.Context().Err() != nil {
				return nil // who asked is gone
			}
			r.cfg.Logger.InfoContext(req.Context(), "could not get blob from node", "node", node, "blob", d, "err", err)
			continue
		}
		r.pass(w, resp, node)
		return nil
	}
	return object.Errorf(errdefs.ErrNotFound, "no node has blob %s", d)
}

// begin counts a transfer in, if there is room.
func (r *Relay) begin(from string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total >= maxRelays || r.to[from] >= maxPerNode {
		return object.Errorf(errdefs.ErrResourceExhausted, "too many blobs are on their way, try again")
	}
	r.total++
	r.to[from]++
	return nil
}

func (r *Relay) end(from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.to[from]--; r.to[from] == 0 {
		delete(r.to, from)
	}
}

// holders are the nodes that have an image, those that have least to do first.
func (r *Relay) holders(image digest.Digest) []string {
	nodes := slices.Clone(r.cfg.Holders(image))
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(nodes, func(a, b string) int { return r.by[a] - r.by[b] })
	return nodes
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
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent || resp.ContentLength < 0 {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("node answers %s", resp.Status)
	}
	return resp, nil
}

// pass hands an answer on. If it breaks off the length tells whoever asked.
func (r *Relay) pass(w http.ResponseWriter, resp *http.Response, node string) {
	r.mu.Lock()
	r.by[node]++
	r.mu.Unlock()
	defer func() {
		_ = resp.Body.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.by[node]--; r.by[node] == 0 {
			delete(r.by, node)
		}
	}()
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
		r.cfg.Logger.Info("blob broke off", "node", node, "err", err)
	}
}
