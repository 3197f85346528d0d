package images_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skep/exec/images"
)

// BenchmarkRootfs is what every start of a container asks of the store.
func BenchmarkRootfs(b *testing.B) {
	for _, count := range []int{1, 20} {
		b.Run(fmt.Sprintf("layers=%d", count), func(b *testing.B) {
			var all []v1.Layer
			for i := range count {
				all = append(all, layer(b, file{name: fmt.Sprintf("usr/lib/%d", i), body: "x"}))
			}
			s, err := images.Open(images.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			archive := saved(b, "x:1", image(b, runtime.GOARCH, all...))
			if err := s.Load(b.Context(), bytes.NewReader(archive), nil); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				fs, err := s.Rootfs(b.Context(), "x:1")
				if err != nil {
					b.Fatal(err)
				}
				fs.Release()
			}
		})
	}
}

// BenchmarkHello makes skep/hello from a binary of the size of this one's big
// brother.
func BenchmarkHello(b *testing.B) {
	dir := b.TempDir()
	binary := filepath.Join(dir, "skep")
	if err := os.WriteFile(binary, bytes.Repeat([]byte("0123456789abcdef"), 4<<20), 0o755); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 20)
	for i := 0; b.Loop(); i++ {
		s, err := images.Open(images.Config{Dir: filepath.Join(dir, fmt.Sprint(i)), Hello: func() string { return binary }})
		if err != nil {
			b.Fatal(err)
		}
		fs, err := s.Rootfs(b.Context(), "skep/hello")
		if err != nil {
			b.Fatal(err)
		}
		fs.Release()
	}
}
