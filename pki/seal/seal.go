// Package seal keeps secrets in the files of a node: it seals single records
// and whole streams with authenticated encryption, under keys that can be
// replaced while old data stays readable.
//
// Whoever opens what was sealed gets exactly the bytes that were sealed for the
// same domain, or an error: never other bytes, never those of another place.
// The domain says what and where the data is (see [Domain]); it is not stored.
//
// The package writes no file and does not keep its own keys: that is the
// keystore's work (pki/identity). It does not hide lengths, and cannot tell a
// whole file from an older copy of it.
package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
)

// KeySize is the length in bytes of every key.
const KeySize = 32

// ErrDamaged says that sealed data is not what was sealed for this domain under
// one of the keys.
var ErrDamaged = errors.New("sealed data is damaged, or sealed for another place")

// ErrNoKey says that the key that data was sealed with is not in the keyring.
var ErrNoKey = errors.New("sealed with an unknown key")

// Secret is bytes that are never shown: not by fmt, not in a log.
type Secret []byte

const hidden = "[sealed]"

// Format implements fmt.Formatter.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// NewSecret is a new random key.
func NewSecret() Secret {
	s := make(Secret, KeySize)
	rand.Read(s)
	return s
}

// Derive is a key for another purpose, which says nothing about s. Only full
// keys are fit for it: this is no password hash.
func (s Secret) Derive(purpose string) Secret {
	return derive(s, nil, purpose)
}

func derive(s Secret, salt []byte, purpose string) Secret {
	k, err := hkdf.Key(sha256.New, s, salt, purpose, KeySize)
	if err != nil {
		panic(fmt.Sprintf("derive key: %v", err)) // only for lengths that are not ours
	}
	return k
}

// Domain joins parts so that no two lists of parts give the same domain.
func Domain(parts ...string) string {
	var b []byte
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return string(b)
}
