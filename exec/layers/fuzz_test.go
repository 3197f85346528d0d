package layers_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"skep/exec/layers"
)

// memory is a directory whose syncs cost nothing, if there is one.
func memory(t *testing.T) string {
	t.Helper()
	parent := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "layers-*") //nolint:usetesting // that would be on a disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// FuzzUnpack feeds tars of strangers: whatever they hold, nothing is written
// outside of the store, and what is refused leaves nothing.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	for _, files := range [][]file{
		{{name: "f", body: "content"}},
		{dir("d", 0o755), {name: "d/.wh.x"}, {name: "d/.wh..wh..opq"}},
		{symlink("d", "../../.."), {name: "d/canary", body: "x"}},
		{symlink("d", "/"), {name: "h", typ: tar.TypeLink, link: "d/canary"}},
		{{name: "caps", pax: map[string]string{"SCHILY.xattr.user.a": "b"}}},
		{{name: "dev", typ: tar.TypeBlock}},
		{{name: "fifo", typ: tar.TypeFifo}},
	} {
		plain := tarOf(f, files...)
		f.Add(plain)
		f.Add(gzipped(f, plain))
		f.Add(zstded(f, plain))
	}
	f.Add(sparse(1 << 14))
	limits := layers.Limits{Bytes: 1 << 20, Ratio: 100, Free: 64 << 10, Entries: 1000, Window: 1 << 20}
	f.Fuzz(func(t *testing.T, blob []byte) {
		s, top := storeIn(t, memory(t), limits)
		// First with a digest that it cannot have: everything is done but the end.
		if err := s.Unpack(t.Context(), digest.FromString("another"), "", source(blob)); err == nil {
			t.Error("a layer with a wrong diffID was taken")
		}
		clean(t, s, top)
		d := digest.FromBytes(blob)
		if err := s.Unpack(t.Context(), d, "", source(blob)); err != nil {
			clean(t, s, top)
			return
		}
		err := filepath.WalkDir(s.Path(d), func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Type()&os.ModeDevice != 0 && stat(t, p).Rdev != 0 {
				t.Errorf("%s is a device", p)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
