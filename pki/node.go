package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"time"
)

// The organisational units of nodes' certificates, which are also the names
// that they answer to.
const (
	Manager = "swarm-manager"
	Worker  = "swarm-worker"
)

// MinExpiry and DefaultExpiry are lives of nodes' certificates.
const (
	MinExpiry     = time.Hour
	DefaultExpiry = 90 * 24 * time.Hour
)

// Node is what a certificate says of the node that holds it.
type Node struct {
	ID, Cluster string
	// Role is Manager or Worker: the most that the node may be.
	Role string
	// Generation is the index of the swarm's store when the certificate was
	// issued: it orders all certificates, and tells whether what is known of a
	// node is newer than its certificate.
	Generation uint64
}

func (n Node) check() error {
	switch {
	case n.ID == "" || n.Cluster == "":
		return errors.New("a node without an ID or a cluster")
	case n.Role != Manager && n.Role != Worker:
		return fmt.Errorf("unknown role %q", n.Role)
	}
	return nil
}

// names are the DNS names of a node's certificate.
func (n Node) names() []string {
	if n.Role == Manager {
		return []string{n.Role, n.ID, RootName}
	}
	return []string{n.Role, n.ID}
}

// Hosts are all names of a node's certificate, for an authority that is told
// them as texts.
func (n Node) Hosts() []string { return append(n.names(), n.uri().String()) }

// CheckExpiry refuses lives that are too short to be renewed in time.
func CheckExpiry(expiry time.Duration) error {
	if expiry < MinExpiry {
		return fmt.Errorf("minimum certificate expiry time is: %s", MinExpiry)
	}
	return nil
}

// Issue makes the certificate of a node for the key that was in its request.
// It ends with the root at the latest.
func (r *Root) Issue(n Node, key crypto.PublicKey, now time.Time, expiry time.Duration) (certPEM []byte, err error) {
	if r.key == nil {
		return nil, errors.New("issue certificate: the root's key is not known")
	}
	if err = errors.Join(n.check(), CheckExpiry(expiry), checkKey(key)); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	end := now.Add(expiry)
	if end.After(r.Cert.NotAfter) {
		end = r.Cert.NotAfter
	}
	if !now.Before(end) {
		return nil, errors.New("issue certificate: the root has expired")
	}
	// A worker's certificate cannot be a server's: it cannot play a manager.
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if n.Role == Manager {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		Subject: pkix.Name{
			CommonName:         n.ID,
			OrganizationalUnit: []string{n.Role},
			Organization:       []string{n.Cluster},
		},
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              end.UTC(),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
		DNSNames:              n.names(),
		URIs:                  []*url.URL{n.uri()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, r.Cert, key, r.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Enroll makes a key and its certificate for a node at once: for the manager
// that has the root at hand.
func (r *Root) Enroll(n Node, now time.Time, expiry time.Duration) (certPEM, keyPEM []byte, err error) {
	csr, keyPEM, err := NewRequest()
	if err != nil {
		return nil, nil, err
	}
	key, err := ParseRequest(csr)
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = r.Issue(n, key, now, expiry)
	return certPEM, keyPEM, err
}

func (n Node) uri() *url.URL {
	return &url.URL{Scheme: "skep", Host: n.Cluster, Path: "/" + n.ID + "/" + strconv.FormatUint(n.Generation, 10)}
}

// Verify is the node that a chain, the leaf first, belongs to. The chain must
// lead to one of the roots and be valid now, and its leaf must be of the form
// that Issue makes.
func Verify(chain, roots []*x509.Certificate, now time.Time) (Node, error) {
	if len(chain) == 0 {
		return Node{}, errors.New("verify certificate: there is none")
	}
	leaf := chain[0]
	n, err := Subject(leaf)
	if err != nil {
		return Node{}, fmt.Errorf("verify certificate: %w", err)
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		DNSName: n.Role, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
			err = &ClockError{NotBefore: e.Cert.NotBefore, NotAfter: e.Cert.NotAfter, Now: now}
		}
		return Node{}, fmt.Errorf("verify certificate: %w", err)
	}
	return n, nil
}

// ClockError says that a certificate is not valid now, by the clock of whoever
// looks at it. One of the two may be wrong.
type ClockError struct{ NotBefore, NotAfter, Now time.Time }

func (e *ClockError) Error() string {
	if e.Now.Before(e.NotBefore) {
		// It was issued by a clock that said at least so much more.
		return fmt.Sprintf("it is not valid before %s, and this machine's clock says %s: a clock is %s off or more, set it and try again",
			e.NotBefore.UTC().Format(time.RFC3339), e.Now.UTC().Format(time.RFC3339), e.NotBefore.Add(backdate).Sub(e.Now).Round(time.Second))
	}
	return fmt.Sprintf("it expired at %s, and this machine's clock says %s", e.NotAfter.UTC().Format(time.RFC3339), e.Now.UTC().Format(time.RFC3339))
}

// Subject is the node that a leaf is made out to. It refuses what Issue would
// not have made, and proves nothing: [Verify] does.
func Subject(leaf *x509.Certificate) (Node, error) {
	s := leaf.Subject
	if len(s.OrganizationalUnit) != 1 || len(s.Organization) != 1 {
		return Node{}, errors.New("not a node's: it has no unit or no organisation")
	}
	n := Node{ID: s.CommonName, Cluster: s.Organization[0], Role: s.OrganizationalUnit[0]}
	if err := n.check(); err != nil {
		return Node{}, err
	}
	if len(leaf.URIs) == 1 {
		// What does not parse is found out below.
		n.Generation, _ = strconv.ParseUint(path.Base(leaf.URIs[0].Path), 10, 64)
	}
	serves := slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	switch {
	case leaf.IsCA:
		return Node{}, errors.New("an authority's, not a node's")
	case !slices.Equal(leaf.DNSNames, n.names()), len(leaf.URIs) != 1, leaf.URIs[0].String() != n.uri().String():
		return Node{}, errors.New("its names are not those of its subject")
	case serves != (n.Role == Manager), !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return Node{}, errors.New("its usage is not that of its role")
	}
	return n, checkKey(leaf.PublicKey)
}
