package images_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// saved is what crane and old docker save: manifest.json and layers beside it.
func saved(tb testing.TB, tag string, img v1.Image) []byte {
	tb.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(ref, img, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// ociDir is an OCI layout with one image under a name.
func ociDir(tb testing.TB, imageName string, img v1.Image) string {
	tb.Helper()
	dir := tb.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"io.containerd.image.name": imageName})); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// tarDir is a directory as a tar, as "tar -C dir -c ." writes it.
func tarDir(tb testing.TB, dir string) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// compressed is an image with one layer as the given bytes, whose content is plain.
func compressed(tb testing.TB, plain, blob []byte, mt types.MediaType) v1.Image {
	tb.Helper()
	l := &rawLayer{Layer: static.NewLayer(blob, mt), plain: plain}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img, err := mutate.Append(img, mutate.Addendum{Layer: l, MediaType: mt})
	if err != nil {
		tb.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		tb.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		tb.Fatal(err)
	}
	return img
}

type rawLayer struct {
	v1.Layer
	plain []byte
}

func (l *rawLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}

func (l *rawLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

// legacy is what docker save wrote before it knew OCI: a directory for each
// layer, and a link where two are the same.
func legacy(tb testing.TB, tag string, layers ...[]byte) []byte {
	tb.Helper()
	var files []file
	var paths, diffIDs []string
	first := map[string]string{}
	for i, l := range layers {
		sum := sha256.Sum256(l)
		diffID := "sha256:" + hex.EncodeToString(sum[:])
		p := fmt.Sprintf("%064x/layer.tar", i+1)
		if to, ok := first[diffID]; ok {
			files = append(files, file{name: p, typ: tar.TypeSymlink, link: "../" + to})
		} else {
			first[diffID] = p
			files = append(files, file{name: p, body: string(l)}, file{name: filepath.Dir(p) + "/VERSION", body: "1.0"})
		}
		paths, diffIDs = append(paths, p), append(diffIDs, diffID)
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		tb.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": []string{tag}, "Layers": paths}})
	if err != nil {
		tb.Fatal(err)
	}
	return tarOf(tb, append(files, file{name: "c.json", body: string(config)}, file{name: "manifest.json", body: string(manifest)})...)
}

func TestLoad(t *testing.T) {
	plain := tarOf(t, file{name: "f", body: "content"})
	img := image(t, runtime.GOARCH, layer(t, file{name: "f", body: "content"}))
	zimg := compressed(t, plain, zstded(t, plain), types.OCILayerZStd)
	multi := func() []byte {
		other := image(t, "s390x", layer(t, file{name: "f", body: "other"}))
		index := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
			mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
		dir := t.TempDir()
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		err = p.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "docker.io/library/x:1"}))
		if err != nil {
			t.Fatal(err)
		}
		return tarDir(t, dir)
	}
	for _, tt := range []struct {
		name    string
		archive []byte
	}{
		{"docker archive with gzip layers", saved(t, "x:1", img)},
		{"docker archive compressed with gzip", gzipped(t, saved(t, "x:1", img))},
		{"docker archive compressed with zstd", zstded(t, saved(t, "x:1", img))},
		{"docker archive with plain layers and a link", legacy(t, "x:1", plain, tarOf(t, file{name: "g"}), plain)},
		{"OCI layout", tarDir(t, ociDir(t, "docker.io/library/x:1", img))},
		{"OCI layout with zstd layers", tarDir(t, ociDir(t, "docker.io/library/x:1", zimg))},
		{"OCI layout of an index", multi()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := open(t)
			var tr transcript
			if err := n.Load(t.Context(), bytes.NewReader(tt.archive), tr.add); err != nil {
				t.Fatal(err)
			}
			tr.has(t, "Loaded image: x:1")
			root, err := n.Rootfs(t.Context(), "x:1")
			if err != nil {
				t.Fatal(err)
			}
			defer root.Release()
			if got := read(t, root, "f"); got != "content" {
				t.Errorf("f holds %q", got)
			}
			n.tidy(t)
		})
	}
}

func TestLoad_RefusesWhatIsNoImageAndLeavesNothing(t *testing.T) {
	good := saved(t, "x:1", image(t, runtime.GOARCH, layer(t, file{name: "f", body: strings.Repeat("content ", 1000)})))
	dir := ociDir(t, "x:1", image(t, runtime.GOARCH, layer(t, file{name: "f"})))
	blobs, err := fs.Glob(os.DirFS(dir), "blobs/sha256/*")
	if err != nil || len(blobs) == 0 {
		t.Fatalf("blobs: %v %v", blobs, err)
	}
	spoiled := filepath.Join(dir, blobs[0])
	if err := os.WriteFile(spoiled, []byte("spoiled"), 0o600); err != nil {
		t.Fatal(err)
	}
	device := image(t, runtime.GOARCH, layer(t, file{name: "f"}), layer(t, file{name: "dev/sda", typ: tar.TypeBlock}))
	wrong := legacy(t, "x:1", tarOf(t, file{name: "f", body: "one"}))
	wrong = bytes.Replace(wrong, []byte("one"), []byte("two"), 1)
	for _, tt := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"nothing", nil, "neither index.json nor manifest.json"},
		{"no tar", []byte(strings.Repeat("no tar ", 200)), "read archive"},
		{"cut off", good[:600], "EOF"},
		{"a spoiled blob", tarDir(t, dir), "content does not match its digest"},
		{"a layer with a device", saved(t, "x:1", device), "device node"},
		{"a layer with another diffID", wrong, "layer refused"},
		{"a missing layer", tarOf(t, file{name: "manifest.json", body: `[{"Config":"c","Layers":["l"]}]`}, file{name: "c", body: `{"rootfs":{"type":"layers","diff_ids":[]}}`}), `has no "l"`},
		{"links in a ring", tarOf(t, file{name: "manifest.json", body: `[{"Config":"a"}]`}, file{name: "a", typ: tar.TypeSymlink, link: "b"}, file{name: "b", typ: tar.TypeSymlink, link: "a"}), `has no "`},
		{"a bad name", tarOf(t, file{name: "manifest.json", body: `[{"Config":"c","RepoTags":["NO/../X:1"]}]`}, file{name: "c", body: `{"rootfs":{"type":"layers"}}`}), "invalid reference"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := open(t)
			err := n.Load(t.Context(), bytes.NewReader(tt.archive), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			n.empty(t)
		})
	}
}

func TestSave_LoadsAgainEverywhere(t *testing.T) {
	host := serve(t)
	img := image(t, runtime.GOARCH, layer(t, file{name: "f", body: "content"}))
	push(t, host+"/app:1", img)
	n := open(t)
	if err := n.Pull(t.Context(), host+"/app:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"app:1", "app:2"} {
		if err := n.Tag(t.Context(), host+"/app:1", tag); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := n.Save(t.Context(), []string{"app"}, &b); err != nil {
		t.Fatal(err)
	}

	m := open(t)
	var tr transcript
	if err := m.Load(t.Context(), bytes.NewReader(b.Bytes()), tr.add); err != nil {
		t.Fatal(err)
	}
	tr.has(t, "Loaded image: app:1")
	tr.has(t, "Loaded image: app:2")
	d, err := m.Distribution(t.Context(), "app:2", nil)
	if err != nil || d.Descriptor.Digest.String() != digestOf(t, img) {
		t.Errorf("digest %s (%v), want the one it was pulled with, %s", d.Descriptor.Digest, err, digestOf(t, img))
	}

	// The reader that knows only Docker's manifest.
	tag, err := name.NewTag("app:2")
	if err != nil {
		t.Fatal(err)
	}
	other, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, &tag)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := other.ConfigName(); err != nil || got != want {
		t.Errorf("config %v (%v), want %v", got, err, want)
	}
	if err := n.Save(t.Context(), []string{"app:1", "nope"}, io.Discard); err == nil || err.Error() != "No such image: nope:latest" {
		t.Errorf("save of what is not there: %v", err)
	}
}

func TestLoadDir_LoadsOnceAndAgainWhenAnImageIsGone(t *testing.T) {
	dir := t.TempDir()
	a := saved(t, "a:1", image(t, runtime.GOARCH, layer(t, file{name: "f", body: "a"})))
	if err := os.WriteFile(filepath.Join(dir, "a.tar"), a, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("not an image"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := ociDir(t, "docker.io/library/b:1", image(t, runtime.GOARCH, layer(t, file{name: "f", body: "b"})))
	if err := os.Rename(b, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.tar"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := open(t)
	for range 2 {
		if err := n.LoadDir(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "bad.tar") {
			t.Errorf("load: %v, want the bad archive named", err)
		}
	}
	if got, want := n.told(), []string{"load a:1", "load b:1"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want each loaded once, %q", got, want)
	}
	if _, err := n.Remove(t.Context(), "b:1", false, true); err != nil {
		t.Fatal(err)
	}
	n.reopen(t)
	_ = n.LoadDir(t.Context(), dir)
	for _, ref := range []string{"a:1", "b:1"} {
		if !n.Has(t, ref) {
			t.Errorf("%s is not there", ref)
		}
	}
}
