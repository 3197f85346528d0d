package images_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"

	"skep/exec/images"
	"skep/exec/layers"
)

// small is a store for inputs of a fuzzer.
func small(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp(memory(), "images-*") //nolint:usetesting // that would be on a disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{dir: dir, users: map[string][]images.User{}}
	n.reopen(t, func(c *images.Config) {
		c.Limits = layers.Limits{Bytes: 1 << 20, Ratio: 100, Free: 64 << 10, Entries: 1000, Window: 1 << 20}
		c.Logger = slog.New(slog.DiscardHandler)
	})
	return n
}

// memory is a directory whose syncs cost nothing, if there is one.
func memory() string {
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// FuzzReference looks for images by any text: it is found by an error of a
// kind, and tagging with it either fails or makes a name that is found.
func FuzzReference(f *testing.F) {
	for _, s := range []string{
		"nginx", "nginx:1.27", "docker.io/library/nginx@sha256:" + strings.Repeat("a", 64), "localhost:5000/a/b:c",
		"sha256:" + strings.Repeat("0", 64), strings.Repeat("0", 64), "abc123", "[::1]:5000/x", "UPPER", "a//b", ":", "@", "",
		"skep/hello:1@sha256:00", "a:b:c", strings.Repeat("a/", 200),
	} {
		f.Add(s)
	}
	if os.Geteuid() != 0 {
		f.Skip("unpacking needs root")
	}
	archive := saved(f, "x:1", image(f, runtime.GOARCH, layer(f, file{name: "f"})))
	f.Fuzz(func(t *testing.T, ref string) {
		n := small(t)
		if err := n.Load(t.Context(), bytes.NewReader(archive), nil); err != nil {
			t.Fatal(err)
		}
		if i, err := n.Inspect(t.Context(), ref); err == nil && i.ID == "" {
			t.Errorf("%q found an image without an ID", ref)
		}
		if n.Tag(t.Context(), "x:1", ref) != nil {
			return
		}
		if _, err := n.Inspect(t.Context(), ref); err != nil {
			t.Errorf("tagged as %q, then %v", ref, err)
		}
		n.reopen(t)
		if _, err := n.Remove(t.Context(), ref, true, true); err != nil {
			t.Errorf("tagged as %q, then not removed: %v", ref, err)
		}
	})
}

// FuzzLoad feeds archives of strangers.
func FuzzLoad(f *testing.F) {
	plain := tarOf(f, file{name: "f", body: "content"})
	img := image(f, runtime.GOARCH, layer(f, file{name: "f", body: "content"}))
	for _, archive := range [][]byte{
		saved(f, "x:1", img), legacy(f, "x:1", plain, plain), tarDir(f, ociDir(f, "x:1", img)),
		tarOf(f, file{name: "manifest.json", body: `[{"Config":"manifest.json","RepoTags":null,"Layers":["manifest.json"]}]`}),
		tarOf(f, file{name: "index.json", body: `{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":-1}]}`}),
	} {
		f.Add(archive)
		f.Add(gzipped(f, archive))
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		n := small(t)
		if err := n.Load(t.Context(), bytes.NewReader(archive), nil); err != nil {
			n.empty(t)
			return
		}
		list, err := n.List(t.Context())
		if err != nil || len(list) == 0 {
			t.Fatalf("loaded, then %d images, %v", len(list), err)
		}
		for _, i := range list {
			fs, err := n.Rootfs(t.Context(), i.ID)
			if err != nil {
				t.Errorf("loaded %s, then %v", i.ID, err)
				continue
			}
			fs.Release()
		}
	})
}

// FuzzDocuments feeds manifests and configs of strangers, in an archive whose
// digests are right.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"$config","size":2},"layers":[]}`), []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"$config","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`), []byte(`{"schemaVersion":2}`))
	f.Add([]byte(`{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}`), []byte(`{}`))
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"digest":"sha256:../../x","size":9223372036854775807}]}`), []byte(`{"config":{"ExposedPorts":{"x":{}},"Healthcheck":{"Interval":-1}},"history":[{"empty_layer":true}]}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		manifest = bytes.ReplaceAll(manifest, []byte("$config"), []byte(sum(config)))
		index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []map[string]any{
			{"digest": sum(manifest), "size": len(manifest), "annotations": map[string]string{"io.containerd.image.name": "x:1"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		n := small(t)
		err = n.Load(t.Context(), bytes.NewReader(tarOf(t,
			file{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`},
			file{name: "blobs/sha256/" + sum(manifest)[7:], body: string(manifest)},
			file{name: "blobs/sha256/" + sum(config)[7:], body: string(config)},
			file{name: "index.json", body: string(index)},
		)), nil)
		if err != nil {
			n.empty(t)
			return
		}
		if _, err := n.Inspect(t.Context(), "x:1"); err != nil {
			t.Error(err)
		}
		if _, err := n.History(t.Context(), "x:1"); err != nil {
			t.Error(err)
		}
		if _, err := n.Distribution(t.Context(), "x:1", nil); err != nil {
			t.Error(err)
		}
	})
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return fmt.Sprintf("sha256:%s", hex.EncodeToString(s[:]))
}
