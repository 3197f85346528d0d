package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// minRootLeft is the life that a root must have left to become a swarm's.
const minRootLeft = 365 * 24 * time.Hour

// CheckSuccessor refuses roots that cannot follow another. The texts are
// Swarm's.
func CheckSuccessor(certPEM []byte, old *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	certs, err := ParseChain(certPEM)
	if err != nil {
		return nil, fmt.Errorf("the desired CA certificate cannot be read: %w", err)
	}
	if len(certs) != 1 {
		return nil, errors.New("the desired CA certificate cannot contain multiple certificates")
	}
	r, err := ParseRoot(certPEM, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Cert.NotAfter.Before(now.Add(minRootLeft)):
		return nil, errors.New("CA certificate expires too soon")
	case now.Before(r.Cert.NotBefore):
		return nil, errors.New("CA certificate is not valid yet")
	// Two roots of one key cannot be told apart in chains.
	case samePublicKey(r.Cert.PublicKey, old.PublicKey) && !r.Cert.Equal(old):
		return nil, errors.New("Cannot update to a cert with an identical key") //nolint:staticcheck // the text is Swarm's
	}
	return r.Cert, nil
}

// CrossSign is another root's key under this root, in PEM: leaves of the other
// lead to this one by it.
func (r *Root) CrossSign(other *x509.Certificate, now time.Time) ([]byte, error) {
	if r.key == nil {
		return nil, errors.New("cross-sign root: the root's key is not known")
	}
	end := other.NotAfter
	if r.Cert.NotAfter.Before(end) {
		end = r.Cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		RawSubject:            other.RawSubject,
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          other.SubjectKeyId,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, r.Cert, other.PublicKey, r.key)
	if err != nil {
		return nil, fmt.Errorf("cross-sign root: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// CheckCross tells whether crossPEM is the key of root under old.
func CheckCross(crossPEM []byte, root, old *x509.Certificate) error {
	certs, err := ParseChain(crossPEM)
	if err != nil {
		return fmt.Errorf("check cross-signed root: %w", err)
	}
	c := certs[0]
	switch {
	case len(certs) != 1, !c.IsCA, !samePublicKey(c.PublicKey, root.PublicKey), string(c.RawSubject) != string(root.RawSubject):
		return errors.New("check cross-signed root: it is not that of the new root")
	}
	if err := c.CheckSignatureFrom(old); err != nil {
		return fmt.Errorf("check cross-signed root: %w", err)
	}
	return nil
}

// Issuer is the subject and the public key, as they stand in certificates, of
// the authority that issued the leaf of a chain. The key is nil if the
// authority is not among the roots.
func Issuer(chain, roots []*x509.Certificate) (subject, publicKey []byte) {
	if len(chain) == 0 {
		return nil, nil
	}
	for _, r := range roots {
		if chain[0].CheckSignatureFrom(r) == nil {
			return r.RawSubject, r.RawSubjectPublicKeyInfo
		}
	}
	return chain[0].RawIssuer, nil
}
