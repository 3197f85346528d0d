package object

import (
	"crypto/rand"
	"math/big"
)

// NewID makes an ID for anything in the swarm: 25 characters of base 36.
func NewID() string {
	var b [17]byte
	rand.Read(b[:])
	b[0] |= 0x80 // a number of always 27 digits, of which the first says little
	return new(big.Int).SetBytes(b[:]).Text(36)[1:26]
}
