// Package embedded is the runtime program (exec/doors/runtime) as the node's
// binary carries it.
//
// `make build` builds the program first, packs it into this directory, and
// builds the node's binary with the tag "embedded". Without that tag there is
// no program here, and no stale one either: the node then runs containers from
// a copy of its own binary, which has the same doors.
package embedded

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// Program is the runtime program.
type Program struct{ packed, sum string }

// Find returns the program, if this binary carries it.
func Find() (p Program, ok bool) {
	p.packed, p.sum = files()
	return p, p.packed != ""
}

// Sum is the SHA-256 of the program. Nothing is unpacked to know it.
func (p Program) Sum() ([]byte, error) {
	text, _, _ := strings.Cut(p.sum, " ") // as sha256sum writes it
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("read sum of the runtime program: %w", err)
	}
	return b, nil
}

// Open unpacks the program.
func (p Program) Open() (io.ReadCloser, error) {
	r, err := gzip.NewReader(strings.NewReader(p.packed))
	if err != nil {
		return nil, fmt.Errorf("unpack the runtime program: %w", err)
	}
	return r, nil
}
