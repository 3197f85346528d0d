package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"skep/store/object"
)

// MaxFrame is the largest value that a frame may hold, in bytes.
const MaxFrame = 1 << 20

// readAhead is how much is read before it is asked for: a beat and its length. A
// manager has thousands of these buffers.
const readAhead = 256

// ErrTooLarge is a frame of more than [MaxFrame] bytes.
var ErrTooLarge = errors.New("frame is larger than 1 MiB")

// Conn sends and receives messages. One goroutine may send while another
// receives.
type Conn struct {
	conn net.Conn
	r    *bufio.Reader
}

// NewConn is a Conn over conn, which stays the caller's to close.
func NewConn(conn net.Conn) *Conn { return &Conn{conn: conn, r: bufio.NewReaderSize(conn, readAhead)} }

// Send writes one message; the other side must take it within timeout.
func (c *Conn) Send(m *Message, timeout time.Duration) error {
	frame, err := appendFrame(nil, m)
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	if _, err := c.conn.Write(frame); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads one message, which must come within timeout.
func (c *Conn) Receive(timeout time.Duration) (*Message, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, fmt.Errorf("set read deadline: %w", err)
	}
	return readFrame(c.r)
}

func appendFrame(b []byte, m *Message) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	body, err := object.Encode(m)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("encode message of %d bytes: %w", len(body), ErrTooLarge)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...), nil
}

func readFrame(r io.Reader) (*Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, fmt.Errorf("receive message of %d bytes: %w", n, ErrTooLarge)
	}
	// The buffer grows with what really comes, not with what was promised.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	m := new(Message)
	if err := object.Decode(body, m); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}
