package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// endorsement keeps these signatures apart from all others of a node's key.
const endorsement = "skep: this request is mine\x00"

// Endorse signs a request for a new key with a node's former key: it says that
// both are the same node's.
func Endorse(csrPEM []byte, former crypto.Signer) ([]byte, error) {
	msg, opts := append([]byte(endorsement), csrPEM...), crypto.SignerOpts(crypto.Hash(0))
	if _, ok := former.Public().(*ecdsa.PublicKey); ok {
		sum := sha256.Sum256(msg)
		msg, opts = sum[:], crypto.SHA256
	}
	sig, err := former.Sign(rand.Reader, msg, opts)
	if err != nil {
		return nil, fmt.Errorf("endorse request: %w", err)
	}
	return sig, nil
}

// CheckEndorsement tells whether the holder of a former certificate endorsed
// the request.
func CheckEndorsement(csrPEM, signature []byte, former *x509.Certificate) error {
	msg := append([]byte(endorsement), csrPEM...)
	ok := false
	switch key := former.PublicKey.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(msg)
		ok = ecdsa.VerifyASN1(key, sum[:], signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, msg, signature)
	}
	if !ok {
		return errors.New("the former key did not sign this request")
	}
	return nil
}
