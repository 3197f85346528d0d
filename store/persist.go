package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"skep/store/object"
)

// A saved snapshot is a sequence of frames, each a length and CBOR: one header,
// then for every kind a section and its objects in the order of their IDs. So
// equal states are saved as equal bytes.

const (
	savedVersion = 2
	frameBuffer  = 256 << 10
)

type savedHeader struct {
	V     uint   `cbor:"v"`
	Index uint64 `cbor:"index"`
}

type savedSection struct {
	Kind  object.Kind `cbor:"kind"`
	Count int         `cbor:"count"`
}

// Save writes the whole state.
func (s *Snapshot) Save(w io.Writer) error {
	bw := bufio.NewWriterSize(w, frameBuffer)
	if err := writeFrame(bw, savedHeader{savedVersion, s.Index}); err != nil {
		return err
	}
	for _, save := range [...]func(*bufio.Writer) error{
		s.Clusters.save, s.Nodes.save, s.Services.save, s.Revisions.save, s.Tasks.save, s.Secrets.save, s.Configs.save,
		s.Networks.save, s.Guests.save,
	} {
		if err := save(bw); err != nil {
			return err
		}
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

func (t *Table[T]) save(w *bufio.Writer) error {
	if err := writeFrame(w, savedSection{t.schema.kind, t.Len()}); err != nil {
		return err
	}
	for o := range t.All() {
		if err := writeFrame(w, o); err != nil {
			return err
		}
	}
	return nil
}

func writeFrame(w *bufio.Writer, v any) error {
	b, err := object.Encode(v)
	if err != nil {
		return fmt.Errorf("save snapshot: encode %T: %w", v, err)
	}
	if _, err := w.Write(binary.AppendUvarint(w.AvailableBuffer(), uint64(len(b)))); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

// Restore replaces the state by what Save wrote. If there is an error the state
// stays as it is.
func (s *Store) Restore(r io.Reader) error {
	d := &draft{Snapshot: *empty(), drafted: map[object.Kind]bool{}}
	if err := d.load(bufio.NewReaderSize(r, frameBuffer)); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	s.mu.Lock()
	s.log, s.base = nil, d.Index
	s.mu.Unlock()
	s.publish(&d.Snapshot, nil)
	return nil
}

func (d *draft) load(r *bufio.Reader) error {
	var h savedHeader
	if err := readFrame(r, &h); err != nil {
		return err
	}
	if h.V != savedVersion {
		return fmt.Errorf("it has format %d and this program knows only %d: start the version that wrote it, or a newer one", h.V, savedVersion)
	}
	d.Index = h.Index
	var done []object.Kind
	for {
		if _, err := r.Peek(1); errors.Is(err, io.EOF) {
			break
		}
		var s savedSection
		if err := readFrame(r, &s); err != nil {
			return err
		}
		if object.New(s.Kind) == nil || slices.Contains(done, s.Kind) {
			return fmt.Errorf("unexpected section %q", s.Kind)
		}
		if err := d.loadSection(r, s); err != nil {
			return err
		}
		done = append(done, s.Kind)
	}
	if len(done) != kinds {
		return fmt.Errorf("%d of %d sections", len(done), kinds)
	}
	return nil
}

const kinds = 9

func (d *draft) loadSection(r *bufio.Reader, s savedSection) error {
	for range s.Count {
		o := object.New(s.Kind)
		if err := readFrame(r, o); err != nil {
			return fmt.Errorf("%s: %w", s.Kind, err)
		}
		if d.Get(s.Kind, o.Key()) != nil {
			return fmt.Errorf("%s %s is there twice", s.Kind, o.Key())
		}
		d.store(o)
	}
	return nil
}

func readFrame(r *bufio.Reader, v any) error {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return noEOF(err)
	}
	if n > MaxCommand {
		return fmt.Errorf("a frame of %d bytes", n)
	}
	b, err := r.Peek(int(n)) // without a copy, if it fits
	if err == nil {
		defer func() { _, _ = r.Discard(int(n)) }() // of what was peeked
	} else if b = make([]byte, n); errors.Is(err, bufio.ErrBufferFull) {
		_, err = io.ReadFull(r, b)
	}
	if err != nil {
		return noEOF(err)
	}
	return object.Decode(b, v)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
