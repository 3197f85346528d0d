// Package pki is the swarm's certificate authority as pure values: its root,
// requests for certificates, the certificates of nodes and what they prove.
//
// A certificate that verifies here names one node of one swarm and the most
// that the node may be, a manager or a worker. Nothing in a request but its
// public key finds its way into a certificate. Keys are ECDSA P-256.
//
// The package keeps no files and no clock: identity stores, callers pass the
// time. That a node was removed or demoted since is the store's knowledge.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	// RootName is the common name of every swarm's root.
	RootName = "swarm-ca"
	// RootLife is how long a root is valid.
	RootLife = 20 * 365 * 24 * time.Hour
	// backdate is how far certificates reach into the past, for nodes whose
	// clocks are late.
	backdate = time.Hour
	// maxPEM is the size in bytes of anything in PEM that is read.
	maxPEM = 256 << 10
)

// Root is the swarm's authority: a certificate, and its key where this node
// may issue.
type Root struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// NewRoot makes an authority.
func NewRoot(now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: RootName},
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              now.Add(RootLife).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            -1, // cross-signed roots may come between
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return &Root{Cert: cert, key: key}, nil
}

// ParseRoot reads an authority. Without a key it can verify but not issue.
func ParseRoot(certPEM, keyPEM []byte) (*Root, error) {
	certs, err := ParseChain(certPEM)
	if err != nil {
		return nil, fmt.Errorf("parse root: %w", err)
	}
	if len(certs) != 1 {
		return nil, errors.New("parse root: the desired CA certificate cannot contain multiple certificates")
	}
	r := &Root{Cert: certs[0]}
	if !r.Cert.IsCA || !r.Cert.BasicConstraintsValid {
		return nil, errors.New("parse root: not the certificate of an authority")
	}
	if err = r.Cert.CheckSignatureFrom(r.Cert); err != nil {
		return nil, fmt.Errorf("parse root: %w", err)
	}
	if len(keyPEM) == 0 {
		return r, nil
	}
	key, err := ParseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("parse root: %w", err)
	}
	if !samePublicKey(key.Public(), r.Cert.PublicKey) {
		return nil, errors.New("parse root: certificate and key are not a pair")
	}
	r.key = key
	return r, nil
}

// PEM is the root's certificate.
func (r *Root) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Cert.Raw})
}

// KeyPEM is the root's key, or nil if it is not known. It is secret.
func (r *Root) KeyPEM() ([]byte, error) {
	if r.key == nil {
		return nil, nil
	}
	return encodeKey(r.key)
}

// ParseChain reads certificates, the leaf first. There is at least one.
func ParseChain(chainPEM []byte) ([]*x509.Certificate, error) {
	if len(chainPEM) > maxPEM {
		return nil, fmt.Errorf("certificates of %d bytes", len(chainPEM))
	}
	var certs []*x509.Certificate
	for rest := chainPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is %q; want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// ParseKey reads a private key in PKCS #8 or SEC 1.
func ParseKey(keyPEM []byte) (crypto.Signer, error) {
	if len(keyPEM) > maxPEM {
		return nil, fmt.Errorf("a key of %d bytes", len(keyPEM))
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("no key in PEM")
	}
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// serial is a random number of 127 bits.
func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
