package seal

import (
	"bufio"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// A stream is sealed in chunks (the STREAM construction), each under the
// stream's own key and a nonce of its number and whether it is the last:
//
//	version | algorithm | key ID | salt | chunk … last chunk
//
// So chunks cannot be changed, dropped, repeated or moved, and the end cannot
// be cut off. All chunks but the last hold chunkSize bytes; the last holds 1 to
// chunkSize, or none if it is the only one.
const (
	chunkSize  = 64 << 10
	sealedSize = chunkSize + chacha20poly1305.Overhead
	saltSize   = 32
)

type stream struct {
	aead  cipher.AEAD
	chunk uint64
}

func newStream(k *key, header, salt []byte, domain string) stream {
	s := derive(k.secret, salt, string(bound(header, domain))+"skep stream")
	aead, err := chacha20poly1305.New(s)
	if err != nil {
		panic(fmt.Sprintf("make cipher: %v", err)) // only for a key of another length
	}
	return stream{aead: aead}
}

// nonce is that of the next chunk: 11 bytes of number, 1 byte of whether it is the last.
func (s *stream) nonce(last bool) []byte {
	n := make([]byte, chacha20poly1305.NonceSize)
	binary.BigEndian.PutUint64(n[3:], s.chunk)
	if last {
		n[11] = 1
	}
	s.chunk++
	return n
}

// Writer seals a stream. What was written is there only after Close.
type Writer struct {
	stream
	to  io.Writer
	buf []byte // the next chunk
	err error
}

// NewWriter seals what is written for a domain, onto w.
func (k *Keyring) NewWriter(domain string, w io.Writer) (*Writer, error) {
	active := (*k.keys.Load())[0]
	b := make([]byte, headerSize+saltSize)
	b[0], b[1] = version, algorithm
	copy(b[2:], active.id[:])
	rand.Read(b[headerSize:])
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("write stream header: %w", err)
	}
	s := newStream(&active, b[:headerSize], b[headerSize:], domain)
	return &Writer{stream: s, to: w, buf: make([]byte, 0, sealedSize)}, nil
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 && w.err == nil {
		if len(w.buf) == chunkSize { // only now is it known not to be the last
			w.flush(false)
		}
		m := min(len(p), chunkSize-len(w.buf))
		w.buf = append(w.buf, p[:m]...)
		p, n = p[m:], n+m
	}
	return n, w.err
}

// Close seals the end. It does not close the writer below.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.flush(true)
	err := w.err
	if err == nil {
		w.err = errors.New("write to a closed stream")
	}
	return err
}

func (w *Writer) flush(last bool) {
	sealed := w.aead.Seal(w.buf[:0], w.nonce(last), w.buf, nil)
	if _, err := w.to.Write(sealed); err != nil {
		w.err = fmt.Errorf("write sealed chunk: %w", err)
	}
	w.buf = w.buf[:0]
}

// NewReader opens a stream that was sealed for a domain. It hands out no byte
// that it did not verify, but knows only at the end that the end is there:
// io.EOF says so.
func (k *Keyring) NewReader(domain string, r io.Reader) (io.Reader, error) {
	header := make([]byte, headerSize+saltSize)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, fmt.Errorf("read stream header: %w", short(err))
	}
	key, err := k.find(header[:headerSize])
	if err != nil {
		return nil, err
	}
	s := newStream(key, header[:headerSize], header[headerSize:], domain)
	return &reader{stream: s, from: bufio.NewReaderSize(r, sealedSize+1), sealed: make([]byte, sealedSize)}, nil
}

type reader struct {
	stream
	from   *bufio.Reader
	sealed []byte
	rest   []byte // opened and not yet read, in sealed
	err    error
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.next()
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next opens a chunk. It sets err to io.EOF with the last one.
func (r *reader) next() {
	first := r.chunk == 0
	n, err := io.ReadFull(r.from, r.sealed)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		r.err = fmt.Errorf("read sealed chunk: %w", short(err))
		return
	}
	last := err != nil
	if !last {
		_, err = r.from.Peek(1)
		last = errors.Is(err, io.EOF)
		if err != nil && !last {
			r.err = fmt.Errorf("read sealed chunk: %w", err)
			return
		}
	}
	plain, err := r.aead.Open(r.sealed[:0], r.nonce(last), r.sealed[:n], nil)
	switch {
	case err != nil, last && !first && len(plain) == 0:
		r.err = ErrDamaged
		return
	case last:
		r.err = io.EOF
	}
	r.rest = plain
}

// short turns the end of a file where there must be more into damage.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrDamaged
	}
	return err
}

// PlainSize is how many bytes a sealed stream of a given length holds.
func PlainSize(sealed int64) int64 {
	sealed -= headerSize + saltSize
	chunks := (sealed + sealedSize - 1) / sealedSize
	return max(0, sealed-chunks*chacha20poly1305.Overhead)
}
