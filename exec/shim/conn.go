package shim

/*
#include "shim.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

// Chunk is the most data that one packet holds.
const Chunk = 16384

// Kind says what a packet from a shim holds.
type Kind byte

// The kinds of packets.
const (
	Stdout Kind = C.PKT_STDOUT
	Stderr Kind = C.PKT_STDERR
	// Ended is the last packet; it holds the exit status.
	Ended Kind = C.PKT_EXIT
)

// Want says what a connection is for.
type Want byte

// The things that a connection may be for. Every connection is told of the end.
const (
	WantStdout Want = C.WANT_STDOUT
	WantStderr Want = C.WANT_STDERR
	// WantClose ends the process's stdin when the connection ends.
	WantClose Want = C.WANT_CLOSE
)

// Conn is a connection to a shim. It may be written to and read from at the
// same time, each by one goroutine.
type Conn struct {
	c   net.Conn
	buf [1 + Chunk]byte
}

// Dial connects to the shim of a run directory. The error is a
// [syscall.ECONNREFUSED] or an [fs.ErrNotExist] when there is no shim.
func Dial(runDir string) (*Conn, error) {
	d, err := os.Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("dial shim: %w", err)
	}
	defer d.Close()
	// The path may be longer than a socket's address.
	addr := net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/attach", Net: "unixpacket"}
	c, err := net.DialUnix("unixpacket", nil, &addr)
	if err != nil {
		return nil, fmt.Errorf("dial shim: %w", err)
	}
	return &Conn{c: c}, nil
}

// Hello says what the connection is for. Until then it only hears of the end.
func (c *Conn) Hello(w Want) error { return c.send(C.PKT_HELLO, []byte{byte(w)}) }

// Write gives data to the process's stdin.
func (c *Conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+Chunk)]
		if err := c.send(C.PKT_STDIN, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// CloseStdin ends the process's stdin, after all that was written.
func (c *Conn) CloseStdin() error { return c.send(C.PKT_CLOSE, nil) }

// Resize sets the size of the process's terminal.
func (c *Conn) Resize(height, width uint) error {
	if height == 0 || width == 0 || height > 0xffff || width > 0xffff {
		return nil
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(height))
	return c.send(C.PKT_SIZE, binary.BigEndian.AppendUint16(b, uint16(width)))
}

// Read returns the next packet; its data is valid until the next Read. It is
// io.EOF when the shim is gone.
func (c *Conn) Read() (Kind, []byte, error) {
	n, err := c.c.Read(c.buf[:])
	if err != nil {
		return 0, nil, err
	}
	if n == 0 {
		return 0, nil, io.EOF
	}
	return Kind(c.buf[0]), c.buf[1:n], nil
}

// Close ends the connection, not the process.
func (c *Conn) Close() error { return c.c.Close() }

func (c *Conn) send(kind byte, data []byte) error {
	b := make([]byte, 0, 1+len(data))
	b = append(append(b, kind), data...)
	_, err := c.c.Write(b)
	return err
}
