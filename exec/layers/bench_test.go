package layers_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"skep/exec/layers"
)

// content is bytes that compress about as binaries do.
func content(r *rand.Rand, n int) string {
	words := make([]string, 4096)
	for i := range words {
		b := make([]byte, 4+r.IntN(8))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		words[i] = string(b)
	}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.String()[:n]
}

// generated is an image of about 300 MB in four layers with 12,000 files.
func generated(b *testing.B) (plain, gz [][]byte) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	pool := content(r, 8<<20)
	for l := range 4 {
		var files []file
		for d := range 100 {
			files = append(files, dir(fmt.Sprintf("usr/%d/%d", l, d), 0o755))
			for i := range 30 {
				n := 1000 + r.IntN(10_000)
				if i == 0 {
					n = 600_000
				}
				at := r.IntN(len(pool) - n)
				files = append(files, file{name: fmt.Sprintf("usr/%d/%d/f%d", l, d, i), body: pool[at : at+n]})
			}
		}
		t := tarOf(b, files...)
		plain, gz = append(plain, t), append(gz, gzipped(b, t))
	}
	return plain, gz
}

// disk is a fresh file system: on one where much was deleted, creating files
// is many times slower, which would be measured instead.
func disk(b *testing.B, dir string) (string, func()) {
	b.Helper()
	img, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		b.Fatal(err)
	}
	run(b, "truncate", "-s", "2G", img)
	run(b, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", img)
	run(b, "mount", "-o", "loop", img, mnt)
	return mnt, func() {
		// Lazily: the thread that unpacked may still be ending inside.
		run(b, "umount", "-l", mnt)
		if err := os.Remove(img); err != nil {
			b.Fatal(err)
		}
	}
}

func run(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Skipf("%s: %v: %s", name, err, out)
	}
}

// BenchmarkUnpack unpacks an image of 300 MB from memory, and has tar do the
// same in the same run: the ratio counts.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	plain, gz := generated(b)
	size := int64(0)
	var ids []digest.Digest
	for _, p := range plain {
		size += int64(len(p))
		ids = append(ids, digest.FromBytes(p))
	}
	dir := b.TempDir()
	measure := func(name string, work func(b *testing.B, mnt string)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				mnt, remove := disk(b, dir)
				b.StartTimer()
				work(b, mnt)
				b.StopTimer()
				remove()
				b.StartTimer()
			}
		})
	}
	for _, n := range []int{1, 4} {
		measure(fmt.Sprintf("skep/layers=%d", n), func(b *testing.B, mnt string) {
			b.Helper()
			s, err := layers.Open(mnt, layers.DefaultLimits())
			if err != nil {
				b.Fatal(err)
			}
			group, ctx := errgroup.WithContext(b.Context())
			group.SetLimit(n)
			for i := range gz {
				group.Go(func() error {
					return s.Unpack(ctx, ids[i], "", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(gz[i])), nil })
				})
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
	measure("tar", func(b *testing.B, mnt string) {
		b.Helper()
		for i := range gz {
			tar := exec.Command("tar", "-xz", "-C", mnt)
			tar.Stdin = bytes.NewReader(gz[i])
			if out, err := tar.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		run(b, "sync", "-f", mnt)
	})
}
