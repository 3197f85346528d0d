package images_test

import (
	"archive/tar"
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/images"
)

// node is a store with what it told.
type node struct {
	*images.Store
	dir    string
	mu     sync.Mutex
	events []events.Message
	users  map[string][]images.User
}

func open(t *testing.T, change ...func(*images.Config)) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root")
	}
	n := &node{dir: filepath.Join(t.TempDir(), "images"), users: map[string][]images.User{}}
	n.reopen(t, change...)
	return n
}

func (n *node) reopen(t *testing.T, change ...func(*images.Config)) {
	t.Helper()
	c := images.Config{
		Dir:    n.dir,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		InUse: func(id string) []images.User {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.users[id]
		},
		Publish: func(m events.Message) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, m)
		},
	}
	for _, f := range change {
		f(&c)
	}
	s, err := images.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	n.Store = s
}

// Has says whether an image can be used.
func (n *node) Has(t *testing.T, ref string) bool {
	t.Helper()
	fs, err := n.Rootfs(t.Context(), ref)
	fs.Release()
	return err == nil
}

// Resolve is what a service is pinned to.
func (n *node) Resolve(t *testing.T, ref string) (string, []ocispec.Platform, error) {
	t.Helper()
	d, err := n.Distribution(t.Context(), ref, nil)
	return d.Descriptor.Digest.String(), d.Platforms, err
}

// told is what was published, as "action name".
func (n *node) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var s []string
	for _, e := range n.events {
		s = append(s, string(e.Action)+" "+e.Actor.Attributes["name"])
	}
	return s
}

// empty fails the test unless nothing is left below the store but its names.
func (n *node) empty(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(n.dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if rel, _ := filepath.Rel(n.dir, p); rel != "refs.json" {
				t.Errorf("left behind: %s", rel)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.tidy(t)
}

// tidy fails the test if something unfinished is in tmp.
func (n *node) tidy(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"tmp/blobs", "tmp/layers"} {
		entries, err := os.ReadDir(filepath.Join(n.dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("left in %s: %s", dir, e.Name())
		}
	}
}

// transcript collects progress as the CLI would print it without a terminal.
type transcript struct{ lines []string }

func (tr *transcript) add(m jsonstream.Message) {
	line := m.Status
	if m.ID != "" {
		line = m.ID + ": " + m.Status
	}
	switch {
	case m.Stream != "":
		line = strings.TrimSuffix(m.Stream, "\n")
	case m.Aux != nil:
		line = "aux " + string(*m.Aux)
	case m.Progress != nil:
		return
	}
	tr.lines = append(tr.lines, line)
}

func (tr *transcript) has(t *testing.T, line string) {
	t.Helper()
	for _, l := range tr.lines {
		if strings.Contains(l, line) {
			return
		}
	}
	t.Errorf("not told: %q\n%s", line, strings.Join(tr.lines, "\n"))
}

// serve is a registry on loopback; it returns its host:port.
func serve(t *testing.T, wrap ...func(http.Handler) http.Handler) string {
	t.Helper()
	h := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	for _, w := range wrap {
		h = w(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// file is an entry of a layer.
type file struct {
	name, body, link string
	typ              byte
	mode             int64
	uid              int
	pax              map[string]string
}

// tarOf is an uncompressed layer.
func tarOf(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Linkname: f.link, Typeflag: f.typ, Mode: f.mode, Uid: f.uid,
			Size: int64(len(f.body)), PAXRecords: f.pax,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func zstded(tb testing.TB, b []byte) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// layer is a layer for go-containerregistry, compressed with gzip.
func layer(tb testing.TB, files ...file) v1.Layer {
	tb.Helper()
	b := tarOf(tb, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// image is an OCI image of the layers for a platform.
func image(tb testing.TB, arch string, layers ...v1.Layer) v1.Image {
	tb.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	cf := &v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"}}
	cf.Config.Cmd = []string{"/bin/app"}
	cf.Config.Labels = map[string]string{"made": "here"}
	img, err := mutate.ConfigFile(img, cf)
	if err != nil {
		tb.Fatal(err)
	}
	for i, l := range layers {
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: l, History: v1.History{CreatedBy: "step " + string(rune('a'+i))}, MediaType: types.OCILayer,
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	return img
}

// push writes an image or an index to a registry.
func push(tb testing.TB, ref string, what any) {
	tb.Helper()
	r, err := name.ParseReference(ref, name.WithDefaultTag("latest"))
	if err != nil {
		tb.Fatal(err)
	}
	switch x := what.(type) {
	case v1.Image:
		err = remote.Write(r, x)
	case v1.ImageIndex:
		err = remote.WriteIndex(r, x)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func digestOf(tb testing.TB, x interface{ Digest() (v1.Hash, error) }) string {
	tb.Helper()
	h, err := x.Digest()
	if err != nil {
		tb.Fatal(err)
	}
	return h.String()
}

// read is a file of the image's topmost layer that has it.
func read(t *testing.T, fs images.Rootfs, name string) string {
	t.Helper()
	for _, dir := range fs.Lower {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return string(b)
		}
	}
	t.Fatalf("no %s in the image", name)
	return ""
}
