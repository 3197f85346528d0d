package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"skep/pki"
)

// ErrNoCertificate says that the node is in no swarm.
var ErrNoCertificate = errors.New("the node has no certificate")

// TLS is the node's own certificate and key, and the roots that it trusts.
func (s State) TLS() (tls.Certificate, []*x509.Certificate, error) {
	if len(s.Certificate) == 0 {
		return tls.Certificate{}, nil, ErrNoCertificate
	}
	cert, err := tls.X509KeyPair(s.Certificate, s.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read node certificate: %w", err)
	}
	roots, err := pki.ParseChain(s.Roots)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read roots: %w", err)
	}
	return cert, roots, nil
}
