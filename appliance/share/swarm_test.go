package share_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/manager/directory"
	"skep/appliance/share"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/appliance/wire/control/controltest"
	"skep/exec/images"
	"skep/pki"
)

// swarm is nodes with real image stores, joined by the control port of m1, the
// manager that leads.
type swarm struct {
	tb    testing.TB
	log   *slog.Logger
	certs *controltest.Swarm
	dir   *directory.Directory
	relay *share.Relay
	m1    wire.Peer
	nodes map[string]*node
	// missed counts invitations of nodes that are gone.
	missed atomic.Int32
	// expected is how many nodes are to have a session.
	expected atomic.Int32

	mu      sync.Mutex
	streams map[string]chan net.Conn
	served  map[string]map[digest.Digest]int // by node: how often a blob was asked for
	broken  map[string]func(http.Handler) http.Handler
}

// node is one node of it.
type node struct {
	*images.Store
	id, path string
	dialer   *control.Dialer
	dial     func() *control.Dialer // another one
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
		certs: controltest.NewSwarm(tb, "c1"), streams: map[string]chan net.Conn{},
		served: map[string]map[digest.Digest]int{}, broken: map[string]func(http.Handler) http.Handler{},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s.m1 = wire.Peer{NodeID: "m1", Addr: l.Addr().String()}
	s.dir = directory.New(directory.Config{
		Manager: func(n string) bool { return n[0] == 'm' },
		Nodes:   func() int { return int(s.expected.Load()) },
		Logger:  s.log,
	})
	leads := func() error { return nil }
	s.relay = share.NewRelay(share.RelayConfig{
		NodeID: func() string { return "m1" }, Local: s.add("m1"), Leading: leads, Directory: s.dir,
		Connect: s.connect, From: caller, Logger: s.log,
	})
	everyone := []control.Class{control.Worker, control.Manager}
	identity := s.certs.Manager(tb, "m1", 1)
	port, err := control.New(control.Config{
		Identity: func() *control.Identity { return identity },
		Judge: func(n pki.Node, _ bool) control.Class {
			if n.Role == pki.Manager {
				return control.Manager
			}
			return control.Worker
		},
		Routes: []control.Route{
			{For: everyone, Pattern: share.Pattern, Handler: s.relay},
			{For: everyone, Pattern: "POST /lookup", Handler: control.Handle(share.Lookup(s.dir, leads))},
			{For: everyone, Pattern: "POST /streams/{id}", Handler: control.Stream(s.attach)},
		},
		Logger: s.log,
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = port.Serve(ctx, l) })
	tb.Cleanup(func() {
		s.relay.Close()
		cancel()
		wg.Wait()
	})
	return s
}

func (s *swarm) leader() (wire.Peer, error) { return s.m1, nil }

func caller(ctx context.Context) string { return control.Caller(ctx).ID }

// add starts a node.
func (s *swarm) add(id string, change ...func(*images.Config)) *node {
	s.tb.Helper()
	n := &node{id: id, path: filepath.Join(s.tb.TempDir(), id)}
	identity := s.certs.Worker(s.tb, id, 1)
	if id[0] == 'm' {
		identity = s.certs.Manager(s.tb, id, 1)
	}
	n.dial = func() *control.Dialer {
		d := control.NewDialer(control.DialerConfig{Identity: func() *control.Identity { return identity }, Logger: s.log})
		s.tb.Cleanup(d.Close)
		return d
	}
	n.dialer = n.dial()
	c := images.Config{
		Dir: n.path, Transport: down{}, Logger: s.log,
		Source: share.NewClient(share.ClientConfig{Dialer: n.dialer, Leader: s.leader}),
	}
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

// connect does what a dispatcher does: it invites a node to a stream.
func (s *swarm) connect(ctx context.Context, id string) (net.Conn, error) {
	n, ok := s.nodes[id]
	if !ok {
		s.missed.Add(1)
		return nil, fmt.Errorf("node %s is gone", id)
	}
	name, conn := rand.Text(), make(chan net.Conn, 1)
	s.mu.Lock()
	s.streams[name] = conn
	s.mu.Unlock()
	go func() {
		c, err := n.dialer.Stream(context.WithoutCancel(ctx), s.m1, "/streams/"+name)
		if err != nil {
			return // nobody waits
		}
		_ = share.ServeConn(context.WithoutCancel(ctx), c, s.handler(n), s.log)
	}()
	select {
	case c := <-conn:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// attach is the manager's side of a stream.
func (s *swarm) attach(ctx context.Context, _ pki.Node, r *http.Request, conn net.Conn) error {
	s.mu.Lock()
	wanted := s.streams[r.PathValue("id")]
	s.mu.Unlock()
	l := &lent{Conn: conn, closed: make(chan struct{})}
	wanted <- l
	select {
	case <-l.closed:
	case <-ctx.Done():
		return l.Close()
	}
	return nil
}

type lent struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *lent) Close() (err error) {
	l.once.Do(func() {
		err = l.Conn.Close()
		close(l.closed) // the stream ends with the handler
	})
	return err
}

// handler is what a node serves.
func (s *swarm) handler(n *node) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.served[n.id] == nil {
			s.served[n.id] = map[digest.Digest]int{}
		}
		s.served[n.id][digest.Digest(r.PathValue("digest"))]++
		wrap := s.broken[n.id]
		s.mu.Unlock()
		h := share.Handler(func() string { return n.id }, n)
		if wrap != nil {
			h = wrap(h)
		}
		h.ServeHTTP(w, r)
	}))
	return mux
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
	random := randv2.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", name))))
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
