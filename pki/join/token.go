// Package join is the token that lets a machine join a swarm:
//
//	SWMTKN-1-<SHA-256 of the root certificate>-<secret>
//
// both numbers in base 36 and with leading zeros. The first tells the joiner
// which root to trust, before it shows the second. A token has exactly one
// spelling. It is shown only by [Token.Text]; elsewhere it hides itself.
package join

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
)

const (
	prefix       = "SWMTKN-1-"
	digestDigits = 50 // of 256 bits
	secretDigits = 25 // of 128 bits
)

// Token is a join token.
type Token struct {
	// Root is the SHA-256 of the root certificate in DER.
	Root   [sha256.Size]byte
	secret [16]byte
}

// New makes a token for a swarm with this root certificate, in DER.
func New(root []byte) Token {
	t := Token{Root: sha256.Sum256(root)}
	rand.Read(t.secret[:])
	return t
}

// Pair makes the texts of a swarm's two tokens, for its root in DER. Both are
// secret.
func Pair(root []byte) (worker, manager string) { return New(root).Text(), New(root).Text() }

// ErrInvalid is Swarm's word for texts that are no tokens.
var ErrInvalid = errors.New("invalid join token")

// Parse reads a token.
func Parse(text string) (Token, error) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || len(rest) != digestDigits+1+secretDigits || rest[digestDigits] != '-' {
		return Token{}, ErrInvalid
	}
	var t Token
	if !parse36(t.Root[:], rest[:digestDigits]) || !parse36(t.secret[:], rest[digestDigits+1:]) {
		return Token{}, ErrInvalid
	}
	return t, nil
}

// parse36 fills b with the number that digits are, if it fits and this is its
// one spelling.
func parse36(b []byte, digits string) bool {
	if strings.Trim(digits, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return false
	}
	n, ok := new(big.Int).SetString(digits, 36)
	if !ok || n.BitLen() > 8*len(b) {
		return false
	}
	n.FillBytes(b)
	return true
}

func format36(b []byte, digits int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", digits-len(s)) + s
}

// Text is the token as it is given to people. It is secret.
func (t Token) Text() string {
	return prefix + format36(t.Root[:], digestDigits) + "-" + format36(t.secret[:], secretDigits)
}

// Equal compares in a time that says nothing of the tokens.
func (t Token) Equal(other Token) bool {
	return subtle.ConstantTimeCompare(t.Root[:], other.Root[:])&
		subtle.ConstantTimeCompare(t.secret[:], other.secret[:]) == 1
}

// Trusts tells whether root, in DER, is the one that the token names.
func (t Token) Trusts(root []byte) bool {
	sum := sha256.Sum256(root)
	return subtle.ConstantTimeCompare(t.Root[:], sum[:]) == 1
}

// Format implements fmt.Formatter.
func (Token) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "[sealed]") }

// LogValue implements slog.LogValuer.
func (Token) LogValue() slog.Value { return slog.StringValue("[sealed]") }
