package identity

import (
	"encoding/base64"
	"errors"
	"strings"

	"skep/pki/seal"
)

const unlockPrefix = "SWMKEY-1-"

// ErrUnlockKey says that a text is no unlock key at all.
var ErrUnlockKey = errors.New("invalid key string")

// FormatUnlockKey is an unlock key as it is given to people. It is secret.
func FormatUnlockKey(key seal.Secret) string {
	return unlockPrefix + base64.RawStdEncoding.EncodeToString(key)
}

// ParseUnlockKey reads an unlock key, which has exactly one spelling.
func ParseUnlockKey(text string) (seal.Secret, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), unlockPrefix)
	// The decoder skips line breaks.
	if !ok || strings.ContainsAny(rest, "\r\n") {
		return nil, ErrUnlockKey
	}
	key, err := base64.RawStdEncoding.Strict().DecodeString(rest)
	if err != nil || len(key) != seal.KeySize {
		return nil, ErrUnlockKey
	}
	return key, nil
}
