package ca_test

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/pki"
	"skep/pki/join"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

const cluster = "c1"

// realm is a swarm's store and the authority of its leader, the node "m0".
type realm struct {
	tb    testing.TB
	store *storetest.Local
	ca    *ca.CA
	own   tls.Certificate // of m0, for those outside
}

func newRealm(tb testing.TB, cfg ca.Config) *realm {
	tb.Helper()
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		tb.Fatal(err)
	}
	s := &realm{tb: tb, store: storetest.New(tb)}
	s.store.Write(tb, func(tx *store.Tx) {
		c := &object.Cluster{ID: cluster, Epoch: 3, RootCA: object.RootCA{Cert: root.PEM(), Key: key}}
		c.Spec.Name = "default"
		c.Spec.CAConfig.NodeCertExpiry = pki.DefaultExpiry
		c.JoinTokens.Worker, c.JoinTokens.Manager = join.Pair(root.Cert.Raw)
		tx.Create(c)
		n := &object.Node{CertRole: swarm.NodeRoleManager}
		n.ID, n.Spec.Role, n.Status.State = "m0", swarm.NodeRoleManager, swarm.NodeStateReady
		n.ManagerStatus = &swarm.ManagerStatus{Leader: true, Addr: "10.0.0.1:2377"}
		n.Description.TLSInfo = tlsInfo(tb, root.PEM(), root.PEM())
		tx.Create(n)
	})
	cfg.Store, cfg.NodeID = s.store, "m0"
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Certificate = s.certificate
	s.ca = ca.New(cfg)
	return s
}

func (s *realm) certificate() (tls.Certificate, error) {
	if len(s.own.Certificate) == 0 {
		return tls.Certificate{}, errors.New("no certificate")
	}
	return s.own, nil
}

func (s *realm) cluster() *object.Cluster { return s.store.Snapshot().Cluster() }

func (s *realm) node(id string) *object.Node {
	s.tb.Helper()
	n, ok := s.store.Snapshot().Nodes.Get(id)
	if !ok {
		s.tb.Fatalf("no node %s", id)
	}
	return n
}

// change rewrites the swarm's object.
func (s *realm) change(do func(c *object.Cluster)) {
	s.tb.Helper()
	s.store.Write(s.tb, func(tx *store.Tx) {
		c := s.cluster().Clone().(*object.Cluster)
		do(c)
		tx.Update(c)
	})
}

// changeNode rewrites a node.
func (s *realm) changeNode(id string, do func(n *object.Node)) {
	s.tb.Helper()
	s.store.Write(s.tb, func(tx *store.Tx) {
		n := s.node(id).Clone().(*object.Node)
		do(n)
		tx.Update(n)
	})
}

// remove takes a node out of the swarm.
func (s *realm) remove(id string) {
	s.tb.Helper()
	s.store.Write(s.tb, func(tx *store.Tx) { tx.Delete(s.node(id)) })
}

// member is a node with its key, as it would keep them.
type member struct {
	id    string
	key   crypto.Signer
	chain []byte
	roots []byte
}

func (m *member) certificates(tb testing.TB) (chain, roots []*x509.Certificate) {
	tb.Helper()
	chain, err := pki.ParseChain(m.chain)
	if err != nil {
		tb.Fatal(err)
	}
	if roots, err = pki.ParseChain(m.roots); err != nil {
		tb.Fatal(err)
	}
	return chain, roots
}

// who is what the member's certificate says now.
func (m *member) who(tb testing.TB) pki.Node {
	tb.Helper()
	chain, roots := m.certificates(tb)
	n, err := pki.Verify(chain, roots, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func newCSR(tb testing.TB) (csr []byte, key crypto.Signer) {
	tb.Helper()
	csr, keyPEM, err := pki.NewRequest()
	if err != nil {
		tb.Fatal(err)
	}
	if key, err = pki.ParseKey(keyPEM); err != nil {
		tb.Fatal(err)
	}
	return csr, key
}

var somewhere = netip.MustParseAddr("192.0.2.7")

// join makes a node by a token.
func (s *realm) join(token string) *member {
	s.tb.Helper()
	csr, key := newCSR(s.tb)
	r, err := s.ca.Join(s.tb.Context(), somewhere, &wire.JoinRequest{Token: token, CSR: csr, Hostname: "h", Clock: time.Now()})
	if err != nil {
		s.tb.Fatal(err)
	}
	return &member{id: r.NodeID, key: key, chain: r.Certificate, roots: r.Roots}
}

// renew renews the member's certificate.
func (s *realm) renew(m *member) error {
	s.tb.Helper()
	csr, key := newCSR(s.tb)
	r, err := s.ca.Renew(s.tb.Context(), m.who(s.tb), &wire.RenewRequest{CSR: csr})
	if err != nil {
		return err
	}
	m.key, m.chain, m.roots = key, r.Certificate, r.Roots
	return nil
}

// tlsInfo is what a node tells of its certificate and its roots.
func tlsInfo(tb testing.TB, chainPEM, rootsPEM []byte) swarm.TLSInfo {
	tb.Helper()
	m := member{chain: chainPEM, roots: rootsPEM}
	chain, roots := m.certificates(tb)
	subject, key := pki.Issuer(chain, roots)
	return swarm.TLSInfo{TrustRoot: string(rootsPEM), CertIssuerSubject: subject, CertIssuerPublicKey: key}
}

func hashOf(tb testing.TB, key crypto.Signer) string {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return string(sum[:])
}
