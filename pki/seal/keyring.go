package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	version = 1
	// algorithm is XChaCha20-Poly1305 for records and ChaCha20-Poly1305 under
	// a key of its own for each stream.
	algorithm = 1

	idSize     = 8
	headerSize = 2 + idSize
	// Overhead is how much longer a record is than what it holds.
	Overhead = headerSize + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// Keyring seals with its active key and opens with any of its keys. It may be
// used by many goroutines.
//
//	record = version | algorithm | key ID | nonce | ciphertext
//
// The header and the domain are authenticated with the data.
type Keyring struct {
	keys atomic.Pointer[[]key] // never changed, only replaced; the first is active
}

type key struct {
	id     [idSize]byte
	secret Secret
	record cipher.AEAD
}

// NewKeyring is a keyring that seals with active and also opens with older.
func NewKeyring(active Secret, older ...Secret) (*Keyring, error) {
	var keys []key
	for _, s := range append([]Secret{active}, older...) {
		if len(s) != KeySize {
			return nil, fmt.Errorf("make keyring: a key of %d bytes", len(s))
		}
		keys = append(keys, makeKey(s))
	}
	k := new(Keyring)
	k.keys.Store(&keys)
	return k, nil
}

func makeKey(s Secret) key {
	k := key{id: [idSize]byte(s.Derive("skep key id")), secret: slices.Clone(s)}
	var err error
	if k.record, err = chacha20poly1305.NewX(s.Derive("skep record")); err != nil {
		panic(fmt.Sprintf("make cipher: %v", err)) // only for a key of another length
	}
	return k
}

// Secrets are the keys, the active one first, for the keystore.
func (k *Keyring) Secrets() []Secret {
	var ss []Secret
	for _, key := range *k.keys.Load() {
		ss = append(ss, slices.Clone(key.secret))
	}
	return ss
}

// Rotate makes fresh the active key. It is in the keystore already.
func (k *Keyring) Rotate(fresh Secret) {
	k.update(func(keys []key) []key { return append([]key{makeKey(fresh)}, keys...) })
}

// Retire forgets all keys but the active one: what they sealed is lost.
func (k *Keyring) Retire() {
	k.update(func(keys []key) []key { return keys[:1:1] })
}

func (k *Keyring) update(change func([]key) []key) {
	for {
		old := k.keys.Load()
		next := change(slices.Clone(*old))
		if k.keys.CompareAndSwap(old, &next) {
			return
		}
	}
}

// Format implements fmt.Formatter.
func (*Keyring) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue implements slog.LogValuer.
func (*Keyring) LogValue() slog.Value { return slog.StringValue(hidden) }

// Seal seals a record.
func (k *Keyring) Seal(domain string, plain []byte) []byte {
	active := (*k.keys.Load())[0]
	b := make([]byte, headerSize+chacha20poly1305.NonceSizeX, len(plain)+Overhead)
	b[0], b[1] = version, algorithm
	copy(b[2:], active.id[:])
	nonce := b[headerSize:]
	rand.Read(nonce)
	return active.record.Seal(b, nonce, plain, bound(b[:headerSize], domain))
}

// Open is what Seal was given for this domain.
func (k *Keyring) Open(domain string, sealed []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrDamaged
	}
	key, err := k.find(sealed[:headerSize])
	if err != nil {
		return nil, err
	}
	nonce, ct := sealed[headerSize:headerSize+chacha20poly1305.NonceSizeX], sealed[headerSize+chacha20poly1305.NonceSizeX:]
	plain, err := key.record.Open(nil, nonce, ct, bound(sealed[:headerSize], domain))
	if err != nil {
		return nil, ErrDamaged
	}
	return plain, nil
}

// Current reports whether a record was sealed with the active key.
func (k *Keyring) Current(sealed []byte) bool {
	active := (*k.keys.Load())[0]
	return len(sealed) >= headerSize && [idSize]byte(sealed[2:headerSize]) == active.id
}

// find is the key that a header names.
func (k *Keyring) find(header []byte) (*key, error) {
	if header[0] != version || header[1] != algorithm {
		return nil, ErrDamaged
	}
	keys := *k.keys.Load()
	for i := range keys {
		if keys[i].id == [idSize]byte(header[2:headerSize]) {
			return &keys[i], nil
		}
	}
	return nil, ErrNoKey
}

// bound is the data that is authenticated with a record. The header's length
// is fixed, so that nothing can move between it and the domain.
func bound(header []byte, domain string) []byte {
	return append(append(make([]byte, 0, len(header)+len(domain)), header...), domain...)
}
