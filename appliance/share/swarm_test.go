package share_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/manager/directory"
	"skep/appliance/share"
	"skep/appliance/wire"
	"skep/exec/images"
	"skep/pki"
)

// swarm is nodes with real image stores, joined by pipes: m1 is the manager
// that leads.
type swarm struct {
	tb    testing.TB
	log   *slog.Logger
	dir   *directory.Directory
	relay *share.Relay
	nodes map[string]*node

	mu     sync.Mutex
	served map[string]map[digest.Digest]int // by node: how often a blob was asked for
	broken map[string]func(http.Handler) http.Handler
}

// node is one node of it.
type node struct {
	*images.Store
	id, path string
	told     map[digest.Digest]wire.Image
}

var errNoRegistry = errors.New("the registry is down")

// down is a registry that cannot be reached.
type down struct{}

func (down) RoundTrip(*http.Request) (*http.Response, error) { return nil, errNoRegistry }

func newSwarm(tb testing.TB) *swarm {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("unpacking needs root")
	}
	s := &swarm{
		tb: tb, log: slog.New(slog.NewTextHandler(tb.Output(), nil)), nodes: map[string]*node{},
		served: map[string]map[digest.Digest]int{}, broken: map[string]func(http.Handler) http.Handler{},
	}
	s.dir = directory.New(directory.Config{Manager: func(n string) bool { return n[0] == 'm' }, Logger: s.log})
	m1 := s.add("m1")
	s.relay = share.NewRelay(share.RelayConfig{
		NodeID: "m1", Local: m1, Leading: func() error { return nil }, Holders: s.dir.Holders,
		Connect: s.connect, From: caller, Logger: s.log,
	})
	tb.Cleanup(s.relay.Close)
	return s
}

type fromKey struct{}

func caller(ctx context.Context) string {
	from, _ := ctx.Value(fromKey{}).(string)
	return from
}

// add starts a node.
func (s *swarm) add(id string, change ...func(*images.Config)) *node {
	s.tb.Helper()
	n := &node{id: id, path: filepath.Join(s.tb.TempDir(), id)}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return s.toLeader(id), nil }}
	s.tb.Cleanup(transport.CloseIdleConnections)
	c := images.Config{Dir: n.path, Transport: down{}, Logger: s.log, Source: share.NewClient(share.ClientConfig{
		Do: func(_ context.Context, req *http.Request) (*http.Response, error) {
			req.URL.Scheme, req.URL.Host = "http", "leader"
			return transport.RoundTrip(req)
		},
		Lookup: func(ctx context.Context, q *share.Question) (*share.Answer, error) {
			return share.Lookup(s.dir, func() error { return nil })(ctx, pki.Node{}, q)
		},
	})}
	for _, f := range change {
		f(&c)
	}
	store, err := images.Open(c)
	if err != nil {
		s.tb.Fatal(err)
	}
	n.Store = store
	s.nodes[id] = n
	return n
}

// toLeader is a connection of a node to the manager that leads.
func (s *swarm) toLeader(from string) net.Conn {
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.relay.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), fromKey{}, from)))
	}))
	return s.serve(mux)
}

// connect is a connection of the manager to a node.
func (s *swarm) connect(_ context.Context, id string) (net.Conn, error) {
	n, ok := s.nodes[id]
	if !ok {
		return nil, fmt.Errorf("node %s is gone", id)
	}
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.served[id] == nil {
			s.served[id] = map[digest.Digest]int{}
		}
		s.served[id][digest.Digest(r.PathValue("digest"))]++
		wrap := s.broken[id]
		s.mu.Unlock()
		h := share.Handler(id, n)
		if wrap != nil {
			h = wrap(h)
		}
		h.ServeHTTP(w, r)
	}))
	return s.serve(mux), nil
}

// times is how often a node was asked for a blob.
func (s *swarm) times(id string, d digest.Digest) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[id][d]
}

// disturb puts something in the way of what a node serves.
func (s *swarm) disturb(id string, wrap func(http.Handler) http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[id] = wrap
}

// serve is one end of a pipe that a server has the other end of.
func (s *swarm) serve(h http.Handler) net.Conn {
	here, there := net.Pipe()
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	l := &single{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conn <- there
	go func() { _ = server.Serve(l) }()
	s.tb.Cleanup(func() {
		_ = server.Close()
		_ = here.Close()
	})
	return here
}

// single is a listener with one connection.
type single struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *single) Addr() net.Addr { return &net.UnixAddr{} }

// tell does what sessions do: all nodes say what they have.
func (s *swarm) tell() {
	s.tb.Helper()
	for id, n := range s.nodes {
		now := map[digest.Digest]wire.Image{}
		held, _ := n.Holdings()
		for _, h := range held {
			now[h.Target.Digest] = wire.Image{Descriptor: h.Target, Names: h.Names, Platforms: h.Platforms}
		}
		for _, h := range wire.NewHoldings(n.told, now) {
			s.dir.Set(id, h)
		}
		n.told = now
	}
}

// gone ends a node.
func (s *swarm) gone(id string) {
	delete(s.nodes, id)
	s.dir.Forget(id)
}

// picture is an image made for a test.
type picture struct {
	archive []byte
	target  digest.Digest
	layers  []digest.Digest
}

// ref is the image's name, pinned.
func (p picture) ref(name string) string { return name + "@" + p.target.String() }

// paint makes an image of layers that cannot be compressed, each with one file.
func paint(tb testing.TB, name string, sizes ...int) picture {
	tb.Helper()
	random := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", name))))
	var p picture
	var m ocispec.Manifest
	var c dockerspec.DockerOCIImage
	blobs := map[string][]byte{}
	keep := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		blobs["blobs/sha256/"+d.Encoded()] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	for i, size := range sizes {
		body := make([]byte, size)
		_, _ = random.Read(body)
		desc := keep(ocispec.MediaTypeImageLayer, tarred(tb, map[string][]byte{fmt.Sprint("file", i): body}))
		m.Layers = append(m.Layers, desc)
		p.layers = append(p.layers, desc.Digest)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, desc.Digest)
	}
	c.RootFS.Type = "layers"
	c.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	m.Config = keep(ocispec.MediaTypeImageConfig, encode(tb, c))
	target := keep(m.MediaType, encode(tb, m))
	p.target = target.Digest
	target.Annotations = map[string]string{"io.containerd.image.name": "docker.io/library/" + name}
	blobs[ocispec.ImageLayoutFile] = encode(tb, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	blobs[ocispec.ImageIndexFile] = encode(tb, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{target}})
	p.archive = tarred(tb, blobs)
	return p
}

func encode(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func tarred(tb testing.TB, files map[string][]byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// load loads an image on a node.
func (n *node) load(tb testing.TB, p picture) {
	tb.Helper()
	if err := n.Load(tb.Context(), bytes.NewReader(p.archive), nil); err != nil {
		tb.Fatal(err)
	}
}

// pull fetches an image as a task does.
func (n *node) pull(tb testing.TB, ref string) {
	tb.Helper()
	if err := n.Pull(tb.Context(), ref, "", nil, nil); err != nil {
		tb.Fatalf("pull %s on %s: %v", ref, n.id, err)
	}
}

// whole fails the test unless the image can be used and is what was painted.
func (n *node) whole(tb testing.TB, p picture, ref string) {
	tb.Helper()
	fs, err := n.Rootfs(tb.Context(), ref)
	if err != nil {
		tb.Fatalf("use %s on %s: %v", ref, n.id, err)
	}
	defer fs.Release()
	if len(fs.Lower) < len(p.layers) {
		tb.Errorf("%s: %d layers, want %d", n.id, len(fs.Lower), len(p.layers))
	}
	for i, d := range p.layers {
		f, err := n.Blob(tb.Context(), d)
		if err != nil {
			tb.Fatalf("layer %d on %s: %v", i, n.id, err)
		}
		got, err := digest.FromReader(f)
		_ = f.Close()
		if err != nil || got != d {
			tb.Errorf("layer %d on %s: %s, %v", i, n.id, got, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(n.path, "tmp/blobs")); len(left) > 0 {
		tb.Errorf("left in tmp of %s: %v", n.id, left)
	}
}

// cut makes each answer break off after some bytes, the first times it is asked.
func cut(after int64, times int) func(http.Handler) http.Handler {
	var mu sync.Mutex
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			h.ServeHTTP(&cutter{ResponseWriter: w, left: after, times: &times}, r)
		})
	}
}

type cutter struct {
	http.ResponseWriter
	left  int64
	times *int
}

func (c *cutter) Write(b []byte) (int, error) {
	if *c.times <= 0 || int64(len(b)) <= c.left {
		c.left -= int64(len(b))
		return c.ResponseWriter.Write(b)
	}
	_, _ = c.ResponseWriter.Write(b[:c.left])
	*c.times--
	panic(http.ErrAbortHandler)
}

// flip gives wrong bytes.
func flip(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(&flipper{w}, r) })
}

type flipper struct{ http.ResponseWriter }

func (f *flipper) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return f.ResponseWriter.Write(b)
}

var _ io.Writer = (*flipper)(nil)
