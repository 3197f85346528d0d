package layers_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"skep/exec/layers"
)

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("unpacking needs root")
	}
}

// file is an entry of a layer.
type file struct {
	name, body, link string
	typ              byte
	mode             int64
	uid              int
	pax              map[string]string
	format           tar.Format
}

func dir(name string, mode int64) file {
	return file{name: name, typ: tar.TypeDir, mode: mode}
}

func symlink(name, to string) file {
	return file{name: name, typ: tar.TypeSymlink, link: to}
}

func tarOf(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Linkname: f.link, Typeflag: f.typ, Mode: f.mode, Uid: f.uid,
			Size: int64(len(f.body)), PAXRecords: f.pax, Format: f.format,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
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

func zstded(tb testing.TB, b []byte, opts ...zstd.EOption) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// store is a store in a directory with a canary beside it.
func store(tb testing.TB, limits layers.Limits) (*layers.Store, string) {
	tb.Helper()
	return storeIn(tb, tb.TempDir(), limits)
}

func storeIn(tb testing.TB, top string, limits layers.Limits) (*layers.Store, string) {
	tb.Helper()
	needRoot(tb)
	if err := os.WriteFile(filepath.Join(top, "canary"), []byte("alive"), 0o600); err != nil {
		tb.Fatal(err)
	}
	s, err := layers.Open(filepath.Join(top, "store"), limits)
	if err != nil {
		tb.Fatal(err)
	}
	return s, top
}

func source(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func unpack(tb testing.TB, s *layers.Store, plain []byte) digest.Digest {
	tb.Helper()
	d := digest.FromBytes(plain)
	if err := s.Unpack(tb.Context(), d, "", source(plain)); err != nil {
		tb.Fatal(err)
	}
	return d
}

// clean fails the test unless the store is empty and nothing was written
// outside of it.
func clean(t *testing.T, s *layers.Store, top string) {
	t.Helper()
	for d := range s.All() {
		t.Errorf("layer %s was stored", d)
	}
	left, err := os.ReadDir(filepath.Join(top, "store/tmp/layers"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("outside of the store: %v", entries)
	}
	if b, err := os.ReadFile(filepath.Join(top, "canary")); err != nil || string(b) != "alive" {
		t.Errorf("canary: %q, %v", b, err)
	}
}

func TestUnpack_RefusesHostileLayers(t *testing.T) {
	up := strings.Repeat("../", 12)
	for _, tt := range []struct {
		name  string
		files []file
		want  string
	}{
		{"a name that climbs", []file{{name: up + "canary", body: "x"}}, "outside of the layer"},
		{"a name that climbs later", []file{{name: "a/../../canary", body: "x"}}, "outside of the layer"},
		{"an absolute name", []file{{name: "/etc/passwd", body: "x"}}, "outside of the layer"},
		{"a file through an absolute link", []file{symlink("d", "/etc"), {name: "d/passwd", body: "x"}}, "through the link"},
		{"a file through a climbing link", []file{symlink("d", up+"tmp"), {name: "d/x", body: "x"}}, "leads out of the layer"},
		{"a file through a chain of links", []file{dir("a", 0o755), symlink("a/b", ".."), symlink("c", "a/b/.."), {name: "c/x", body: "x"}}, "leads out of the layer"},
		{"a hard link that climbs", []file{{name: "h", typ: tar.TypeLink, link: up + "canary"}}, "outside of the layer"},
		{"an absolute hard link", []file{{name: "h", typ: tar.TypeLink, link: "/etc/passwd"}}, "no such file"},
		{"a hard link through a link", []file{symlink("d", "/etc"), {name: "h", typ: tar.TypeLink, link: "d/passwd"}}, "no such file"},
		{"a whiteout of the parent", []file{{name: "a/.wh..."}}, "hides no file"},
		{"a whiteout of dot", []file{{name: "a/.wh.."}}, "hides no file"},
		{"a whiteout of nothing", []file{{name: "a/.wh."}}, "hides no file"},
		{"a block device", []file{{name: "dev/sda", typ: tar.TypeBlock}}, "device node"},
		{"a character device", []file{{name: "kmem", typ: tar.TypeChar}}, "device node"},
		{"a whiteout of its own make", []file{{name: "etc", typ: tar.TypeChar}}, "device node"},
		{"a root that is a file", []file{{name: "./", typ: tar.TypeSymlink, link: "/etc"}}, "not a directory"},
		{"a directory in place of a parent", []file{{name: "f", body: "x"}, {name: "f/g", body: "x"}}, "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, top := store(t, layers.DefaultLimits())
			plain := tarOf(t, tt.files...)
			err := s.Unpack(t.Context(), digest.FromBytes(plain), "", source(plain))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, layers.ErrRefused) {
				t.Errorf("got %v, want a refusal with %q", err, tt.want)
			}
			clean(t, s, top)
		})
	}
}

func TestUnpack_RefusesBombs(t *testing.T) {
	small := layers.Limits{Bytes: 1 << 20, Ratio: 10, Free: 64 << 10, Entries: 100, Window: 1 << 20}
	zeros := tarOf(t, file{name: "f", body: string(make([]byte, 512<<10))})
	var many []file
	for range 101 {
		many = append(many, file{name: "f"})
	}
	for _, tt := range []struct {
		name string
		blob []byte
		want string
	}{
		{"ratio of gzip", gzipped(t, zeros), "no layer may grow"},
		{"ratio of zstd", zstded(t, zeros), "no layer may grow"},
		{"size", tarOf(t, file{name: "f", body: string(make([]byte, 1<<20))}), "larger than 1048576 bytes"},
		{"size of what follows the archive", append(tarOf(t, file{name: "f"}), make([]byte, 1<<20)...), "larger than 1048576 bytes"},
		{"files", tarOf(t, many...), "more than 100 files"},
		{"zstd window", zstded(t, bytes.Repeat([]byte("0123456789abcdefg"), 1<<18), zstd.WithWindowSize(4<<20)), "window"},
		{"sparse file", sparse(1 << 19), "sparse"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, top := store(t, small)
			err := s.Unpack(t.Context(), digest.FromString("x"), "", source(tt.blob))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			clean(t, s, top)
		})
	}
}

// sparse is a tar of an old GNU sparse file of one hole.
func sparse(size int) []byte {
	h := make([]byte, 512)
	copy(h, "hole")
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], "00000000000\x00")
	copy(h[136:], "00000000000\x00")
	h[156] = tar.TypeGNUSparse
	copy(h[257:], "ustar  \x00")
	octal := []byte("00000000000\x00")
	for i, n := 10, size; n > 0; i, n = i-1, n>>3 {
		octal[i] = byte('0' + n&7)
	}
	copy(h[386:], octal)         // the offset of the only part, behind the hole
	copy(h[398:], "00000000000") // which is empty
	copy(h[483:], octal)         // the real size
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	check := []byte("000000\x00 ")
	for i, n := 5, sum; n > 0; i, n = i-1, n>>3 {
		check[i] = byte('0' + n&7)
	}
	copy(h[148:], check)
	return append(h, make([]byte, 1024)...)
}

func TestUnpack_RefusesWhatIsNotTheLayer(t *testing.T) {
	plain := tarOf(t, file{name: "f", body: strings.Repeat("some content ", 100_000)}, file{name: "g"})
	want := digest.FromBytes(plain)
	gz, zs := gzipped(t, plain), zstded(t, plain)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x40
		return b
	}
	for name, blob := range map[string][]byte{
		"flipped plain":       flip(plain, 1000),
		"flipped gzip":        flip(gz, len(gz)/2),
		"flipped zstd":        flip(zs, len(zs)/2),
		"short plain":         plain[:len(plain)-1024],
		"short within a file": plain[:len(plain)/2],
		"short gzip":          gz[:len(gz)-4],
		"half a gzip":         gz[:len(gz)/2],
		"half a zstd":         zs[:len(zs)/2],
		"long plain":          append(bytes.Clone(plain), make([]byte, 512)...),
		"long gzip":           append(bytes.Clone(gz), "tail"...),
		"another layer":       tarOf(t, file{name: "f"}),
		"nothing":             nil,
	} {
		t.Run(name, func(t *testing.T) {
			s, top := store(t, layers.DefaultLimits())
			if err := s.Unpack(t.Context(), want, "", source(blob)); err == nil {
				t.Error("it was taken")
			}
			clean(t, s, top)
		})
	}
}

func TestUnpack_TakesEveryCompression(t *testing.T) {
	plain := tarOf(t, file{name: "f", body: "content"})
	gz := gzipped(t, plain)
	half := len(plain) / 2
	for name, blob := range map[string][]byte{
		"plain": plain, "gzip": gz, "zstd": zstded(t, plain),
		"gzip of two members": append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
		"zstd of two frames":  append(zstded(t, plain[:half]), zstded(t, plain[half:])...),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := store(t, layers.DefaultLimits())
			d := digest.FromBytes(plain)
			if err := s.Unpack(t.Context(), d, "", source(blob)); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(s.Path(d), "f")); err != nil || string(b) != "content" {
				t.Errorf("f holds %q, %v", b, err)
			}
		})
	}
}

func TestUnpack_OnceForAll(t *testing.T) {
	s, _ := store(t, layers.DefaultLimits())
	plain := tarOf(t, file{name: "f", body: "content"})
	d := digest.FromBytes(plain)
	var opened atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := s.Unpack(t.Context(), d, "", func() (io.ReadCloser, error) {
				if opened.Add(1) == 1 {
					return nil, errors.New("the first fails")
				}
				return io.NopCloser(bytes.NewReader(plain)), nil
			})
			if err != nil && err.Error() != "the first fails" {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if opened.Load() != 2 {
		t.Errorf("opened %d times, want once more after a failure", opened.Load())
	}
}

func TestUnpack_EndsWithItsContext(t *testing.T) {
	s, top := store(t, layers.DefaultLimits())
	plain := tarOf(t, file{name: "f", body: strings.Repeat("x", 1<<20)})
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(plain[:100_000])
		cancel()
		_ = w.CloseWithError(context.Canceled)
	}()
	if err := s.Unpack(ctx, digest.FromBytes(plain), "", func() (io.ReadCloser, error) { return r, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	clean(t, s, top)
}

func TestOpen_WipesUnfinishedLayers(t *testing.T) {
	_, top := store(t, layers.DefaultLimits())
	if err := os.MkdirAll(filepath.Join(top, "store/tmp/layers/layer-1/fs/etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := layers.Open(filepath.Join(top, "store"), layers.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	clean(t, s, top)
}
