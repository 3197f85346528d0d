package containers

import (
	"crypto/rand"
	"encoding/hex"
)

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
