package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"skep/pki"
)

// serverLife is how long a server's certificate is valid that nobody signs;
// clients pin it, so it is not replaced before it must be.
const serverLife = 10 * 365 * 24 * time.Hour

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

// Server is the certificate of the admin API on tcp for a node file that names
// none. It is made at the first call, and again when it ends or when hosts
// (names and addresses) are not all in it; else it stays the same.
func (k *Keystore) Server(hosts []string, now time.Time) (tls.Certificate, error) {
	s := k.State()
	if cert, err := tls.X509KeyPair(s.ServerCertificate, s.ServerKey); err == nil && covers(cert.Leaf, hosts, now) {
		return cert, nil
	}
	certPEM, keyPEM, err := pki.SelfSigned(hosts, now, serverLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	err = k.Update(func(s *State) error {
		s.ServerCertificate, s.ServerKey = certPEM, keyPEM
		return nil
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

func covers(leaf *x509.Certificate, hosts []string, now time.Time) bool {
	for _, h := range hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return now.Before(leaf.NotAfter)
}
