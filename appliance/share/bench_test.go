package share_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"skep/appliance/share"
	"skep/exec/images"
)

// imageSize is that of the image in the benchmarks, in four layers.
const imageSize = 300 << 20

// BenchmarkFetch fetches an image of another worker, by way of the manager.
func BenchmarkFetch(b *testing.B) {
	s := newSwarm(b)
	w1 := s.add("w1")
	p := paint(b, "app:1", imageSize/4, imageSize/4, imageSize/4, imageSize/4)
	w1.load(b, p)
	p.archive = nil
	s.tell()
	b.Run("unpacked", func(b *testing.B) {
		b.SetBytes(imageSize)
		for b.Loop() {
			n := s.add("w2")
			n.pull(b, p.ref("app"))
			b.StopTimer()
			_ = os.RemoveAll(n.path)
			b.StartTimer()
		}
	})
	b.Run("blobs", func(b *testing.B) {
		client := share.NewClient(share.ClientConfig{Dialer: s.add("w3").dialer, Leader: s.leader})
		b.SetBytes(imageSize)
		for b.Loop() {
			for _, l := range p.layers {
				fetch(b, client, images.Query{Image: p.target, Digest: l})
			}
		}
	})
	b.Run("copy", func(b *testing.B) {
		open := plain(b, s, filepath.Join(w1.path, "blobs/sha256", p.layers[0].Encoded()))
		b.SetBytes(imageSize)
		for b.Loop() {
			for range p.layers {
				conn := open()
				keep(b, conn)
				_ = conn.Close()
			}
		}
	})
}

// fetch gets a blob and writes it to a file.
func fetch(b *testing.B, c *share.Client, q images.Query) {
	b.Helper()
	part, err := c.Blob(b.Context(), q)
	if err != nil {
		b.Fatal(err)
	}
	defer part.Body.Close()
	keep(b, part.Body)
}

func keep(b *testing.B, r io.Reader) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "blob"))
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if n, err := io.Copy(f, r); err != nil || n < imageSize/4 {
		b.Fatalf("%d bytes, %v", n, err)
	}
}

// plain is a server that sends a file to whoever connects, over TLS and nothing
// else; what it returns connects.
func plain(b *testing.B, s *swarm, path string) func() net.Conn {
	b.Helper()
	cert := s.certs.Manager(b, "m9", 1).Certificate
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if f, err := os.Open(path); err == nil {
				_, _ = io.Copy(c, f)
				_ = f.Close()
			}
			_ = c.Close()
		}
	}()
	return func() net.Conn {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}} //nolint:gosec // only the speed counts
		c, err := d.DialContext(b.Context(), "tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
}
