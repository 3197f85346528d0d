package logstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"skep/appliance/wire"
	"skep/store/object"
)

// maxFrame is the largest value of a frame, in bytes: a line's text is at most 16 KiB.
const maxFrame = 64 << 10

// frame is a piece of the answer: its length as four bytes, the highest first,
// and then the value. One without a value is a sign of life.
type frame struct {
	Line *object.LogLine
	// End is the last frame; without it the log was broken off.
	End bool
	// Err is why the log ended, if that is not its own end.
	Err *wire.Refusal
}

func (f *frame) check() error {
	if (f.Line != nil) == f.End || f.Err != nil && !f.End {
		return errors.New("frame is neither a line nor the end")
	}
	return nil
}

// appendFrame adds f to b; nil is the sign of life.
func appendFrame(b []byte, f *frame) ([]byte, error) {
	if f == nil {
		return append(b, 0, 0, 0, 0), nil
	}
	value, err := object.Encode(f)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(value) > maxFrame {
		return nil, fmt.Errorf("encode frame: it has %d bytes, more than %d", len(value), maxFrame)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...), nil
}

// readFrame is the next frame, nil for a sign of life, and its size in bytes.
// The value is read into buf, which has room for it.
func readFrame(r io.Reader, buf []byte) (f *frame, size int, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n == 0:
		return nil, len(head), nil
	case n > maxFrame:
		return nil, 0, fmt.Errorf("read frame: it has %d bytes, more than %d", n, maxFrame)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return nil, 0, fmt.Errorf("read frame: %w", err)
	}
	f = new(frame)
	if err := object.Decode(buf[:n], f); err != nil {
		return nil, 0, fmt.Errorf("decode frame: %w", err)
	}
	if err := f.check(); err != nil {
		return nil, 0, fmt.Errorf("decode frame: %w", err)
	}
	return f, len(head) + int(n), nil
}
