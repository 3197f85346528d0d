package control

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"skep/pki"
	"skep/pki/join"
)

// The protocols of the port.
const (
	protoH2   = "h2"
	protoRaft = "skep-raft/1"
)

// Identity is a node's own identity. It is never changed: a node that renews
// its certificate, or trusts other roots, makes a new one.
type Identity struct {
	Certificate tls.Certificate
	Roots       []*x509.Certificate
	Cluster     string
	NodeID      string
	Epoch       uint64
}

// Role is what the certificate says that the node may be at most.
func (i *Identity) Role() string {
	if i.Certificate.Leaf == nil || len(i.Certificate.Leaf.Subject.OrganizationalUnit) != 1 {
		return ""
	}
	return i.Certificate.Leaf.Subject.OrganizationalUnit[0]
}

// Class is the class of callers that the node belongs to.
func (i *Identity) Class() Class { return classOf(i.Role()) }

// own is the node's certificate in DER, or nil.
func (i *Identity) own() []byte {
	if len(i.Certificate.Certificate) == 0 {
		return nil
	}
	return i.Certificate.Certificate[0]
}

// trustsAll tells whether all of roots are still trusted.
func (i *Identity) trustsAll(roots []*x509.Certificate) bool {
	return !slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return !slices.ContainsFunc(i.Roots, r.Equal) })
}

// serving is the certificate to serve with: its chain ends with the roots, for
// joiners, who know a root by its digest only.
func (i *Identity) serving() *tls.Certificate {
	c := i.Certificate
	c.Certificate = slices.Clip(c.Certificate)
	for _, r := range i.Roots {
		if !slices.ContainsFunc(c.Certificate, func(der []byte) bool { return slices.Equal(der, r.Raw) }) {
			c.Certificate = append(c.Certificate, r.Raw)
		}
	}
	return &c
}

// verify is the node of this swarm that a chain belongs to.
func (i *Identity) verify(chain []*x509.Certificate) (pki.Node, error) {
	n, err := pki.Verify(chain, i.Roots, time.Now())
	if err != nil {
		return pki.Node{}, err
	}
	if n.Cluster != i.Cluster {
		return pki.Node{}, fmt.Errorf("verify certificate: it is of swarm %s, not of %s", n.Cluster, i.Cluster)
	}
	return n, nil
}

// verifyServer checks that a chain is that of manager to, or of any manager if
// to is empty.
func (i *Identity) verifyServer(chain []*x509.Certificate, to string) error {
	n, err := i.verify(chain)
	switch {
	case err != nil:
		return err
	case n.Role != pki.Manager:
		return errors.New("verify certificate: it is a worker's, not a manager's")
	case to != "" && n.ID != to:
		return fmt.Errorf("verify certificate: it is of node %s, not of %s", n.ID, to)
	}
	return nil
}

// clientTLS is for a connection to node to. Go's own verification is off, since
// it knows neither swarms nor nodes; VerifyConnection does all of it, at every
// handshake.
func (i *Identity) clientTLS(proto, to string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{proto},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true,
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &i.Certificate, nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("the server does not speak %s", proto)
			}
			return i.verifyServer(cs.PeerCertificates, to)
		},
	}
}

// joinTLS is for the connection of a joiner, who trusts the root that its token
// names and nothing else. That root must be in the chain that is presented, and
// the rest of the chain must lead to it.
func joinTLS(token join.Token) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoH2},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != protoH2 {
				return fmt.Errorf("the server does not speak %s", protoH2)
			}
			named := func(c *x509.Certificate) bool { return token.Trusts(c.Raw) }
			at := slices.IndexFunc(cs.PeerCertificates, named)
			if at < 0 {
				return &FingerprintError{Expected: token.Root}
			}
			n, err := pki.Verify(cs.PeerCertificates, cs.PeerCertificates[at:at+1], time.Now())
			if err != nil {
				return err
			}
			if n.Role != pki.Manager {
				return errors.New("verify certificate: it is a worker's, not a manager's")
			}
			return nil
		},
	}
}

// FingerprintError says that a server's root is not the one of the token.
type FingerprintError struct{ Expected [32]byte }

func (e *FingerprintError) Error() string {
	return "remote CA does not match fingerprint. Expected: " + hex.EncodeToString(e.Expected[:])
}
