package layers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Read-ahead between decompression with hashing and the creation of files.
const (
	chunkSize = 256 << 10
	chunks    = 8
)

// stream is the uncompressed tar of a layer, decompressed, counted and hashed
// in a goroutine of its own a few chunks ahead of its reader.
type stream struct {
	limits     Limits
	compressed atomic.Int64
	total      int64 // written by pump only, until done is closed
	hash       hash.Hash

	full, empty chan []byte
	done        chan struct{} // pump returned; err, total and hash are final
	err         error         // nil at the end of the source
	cancel      context.CancelFunc

	current, rest []byte
}

// Plain is the plain content of r within limits; r is read ahead in another
// goroutine until Close.
func Plain(ctx context.Context, r io.Reader, limits Limits) io.ReadCloser {
	return newStream(ctx, r, limits, nil)
}

// newStream starts reading src. The hash may be nil.
func newStream(ctx context.Context, src io.Reader, limits Limits, h hash.Hash) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{
		limits: limits, hash: h, cancel: cancel,
		full: make(chan []byte, chunks), empty: make(chan []byte, chunks), done: make(chan struct{}),
	}
	for range chunks {
		s.empty <- make([]byte, chunkSize)
	}
	// The reader runs in a thread with another root: what reads the source,
	// which may open files and connections, must not.
	go func() {
		defer close(s.done)
		defer close(s.full)
		s.err = s.pump(ctx, src)
	}()
	return s
}

// pump moves the source, decompressed, into full.
func (s *stream) pump(ctx context.Context, src io.Reader) error {
	r, closer, err := Decompress(&meter{r: src, n: &s.compressed}, s.limits.Window)
	if err != nil {
		return err
	}
	defer closer()
	for {
		var buf []byte
		select {
		case buf = <-s.empty:
		case <-ctx.Done():
			return ctx.Err()
		}
		n, err := fill(r, buf[:chunkSize])
		if s.hash != nil {
			s.hash.Write(buf[:n])
		}
		s.total += int64(n)
		if limitErr := s.check(); limitErr != nil {
			return limitErr
		}
		if n > 0 {
			s.full <- buf[:n] // as many places as buffers: never blocks
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// fill is io.ReadFull without its change of errors: a source that was cut off
// must not look like one that ended.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// check holds the stream against the limits.
func (s *stream) check() error {
	if s.total > s.limits.Bytes {
		return refuse("larger than %d bytes", s.limits.Bytes)
	}
	if in := s.compressed.Load(); s.total > s.limits.Free && s.total/s.limits.Ratio > in {
		return refuse("%d bytes unpack to more than %d, no layer may grow more than %d times", in, s.total, s.limits.Ratio)
	}
	return nil
}

func (s *stream) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if s.current != nil {
			s.empty <- s.current
			s.current = nil
		}
		buf, ok := <-s.full
		if !ok {
			<-s.done
			if s.err != nil {
				return 0, s.err
			}
			return 0, io.EOF
		}
		s.current, s.rest = buf, buf
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// failed is why reading ended, if it was the source: a tar reader may hide it.
func (s *stream) failed() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// digest is that of all that was read; valid after EOF.
func (s *stream) digest() digest.Digest {
	return digest.NewDigest(digest.SHA256, s.hash)
}

// Close ends the pump and waits for it.
func (s *stream) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// Decompress is the plain content of r, which it tells by its first bytes to be
// gzip, zstd or neither. The returned function frees what reading took.
func Decompress(r io.Reader, window uint64) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("read gzip: %w", err)
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), skippable(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(window),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("read zstd: %w", err)
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// skippable says whether a zstd stream starts with a frame of somebody's own.
func skippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// meter counts what is read through it.
type meter struct {
	r io.Reader
	n *atomic.Int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	return n, err
}
