package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func TestJoin_MakesTheNodeThatTheTokenSays(t *testing.T) {
	s := newRealm(t, ca.Config{})
	for _, tt := range []struct {
		token string
		role  swarm.NodeRole
		unit  string
	}{
		{s.cluster().JoinTokens.Worker, swarm.NodeRoleWorker, pki.Worker},
		{s.cluster().JoinTokens.Manager, swarm.NodeRoleManager, pki.Manager},
	} {
		csr, key := newCSR(t)
		r, err := s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{
			Token: tt.token, CSR: csr, Availability: swarm.NodeAvailabilityDrain, Hostname: "h1", Addr: "10.0.0.9:2377", Clock: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
		m := &member{id: r.NodeID, chain: r.Certificate, roots: r.Roots}
		n := s.node(r.NodeID)
		want := pki.Node{ID: r.NodeID, Cluster: cluster, Role: tt.unit, Generation: n.Version.Index}
		if got := m.who(t); got != want || len(r.NodeID) != 25 {
			t.Errorf("certificate of %+v, want %+v", got, want)
		}
		if n.Spec.Role != tt.role || n.CertRole != tt.role || n.Spec.Availability != swarm.NodeAvailabilityDrain ||
			n.Status.State != swarm.NodeStateUnknown || n.Status.Addr != "192.0.2.7" || n.Description.Hostname != "h1" ||
			n.Generation != n.Version.Index || string(n.KeyHash) != hashOf(t, key) {
			t.Errorf("got node %+v", n)
		}
		lead := wire.Peer{NodeID: "m0", Addr: "10.0.0.1:2377"}
		if r.ClusterID != cluster || r.Epoch != 3 || r.Role != tt.role || len(r.Managers) != 1 || r.Managers[0] != lead || r.Leader != lead {
			t.Errorf("got %+v", r)
		}
	}
}

func TestJoin_RefusesBadTokens(t *testing.T) {
	s := newRealm(t, ca.Config{})
	good := s.cluster().JoinTokens.Worker
	other := "0"
	if strings.HasSuffix(good, "0") {
		other = "1"
	}
	former := good
	s.change(func(c *object.Cluster) {
		c.JoinTokens.Worker = c.JoinTokens.Manager[:len(good)-25] + strings.Repeat("1", 25)
	})
	csr, _ := newCSR(t)
	for i, tt := range []struct {
		token, text string
		kind        error
	}{
		{"", "invalid join token", errdefs.ErrInvalidArgument},
		{"SWMTKN-1-x-y", "invalid join token", errdefs.ErrInvalidArgument},
		{good + " ", "invalid join token", errdefs.ErrInvalidArgument},
		{good[:len(good)-1] + other, "A valid join token is necessary to join this cluster", errdefs.ErrPermissionDenied},
		{former, "A valid join token is necessary to join this cluster", errdefs.ErrPermissionDenied},
	} {
		from := netip.AddrFrom4([4]byte{10, 0, byte(i), 1})
		_, err := s.ca.Join(t.Context(), from, &wire.JoinRequest{Token: tt.token, CSR: csr, Clock: time.Now()})
		if err == nil || err.Error() != tt.text || !errors.Is(err, tt.kind) {
			t.Errorf("%q: got %v, want %s", tt.token, err, tt.text)
		}
	}
	if got := s.store.Snapshot().Nodes.Len(); got != 1 {
		t.Errorf("%d nodes", got)
	}
}

// TestJoin_BelievesNothingOfARequestButItsKey is SEC-ID.
func TestJoin_BelievesNothingOfARequestButItsKey(t *testing.T) {
	s := newRealm(t, ca.Config{})
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	boast := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "m0", Organization: []string{"other"}, OrganizationalUnit: []string{pki.Manager}},
		DNSNames: []string{"swarm-manager", "m0"},
	}
	sign := func(key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, boast, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	join := func(csr []byte) (*wire.JoinReply, error) {
		return s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: s.cluster().JoinTokens.Worker, CSR: csr})
	}
	r, err := join(sign(ec))
	if err != nil {
		t.Fatal(err)
	}
	m := &member{chain: r.Certificate, roots: r.Roots}
	if got := m.who(t); got.Role != pki.Worker || got.ID == "m0" || got.Cluster != cluster {
		t.Errorf("got %+v", got)
	}
	der, _ := pem.Decode(sign(ec))
	der.Bytes[len(der.Bytes)-1] ^= 1
	for name, csr := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("x"), "P-384": sign(p384), "RSA": sign(weak), "not proved": pem.EncodeToMemory(der),
		"huge": []byte(strings.Repeat("x", 1<<20)),
	} {
		if _, err := join(csr); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got := s.store.Snapshot().Nodes.Len(); got != 2 {
		t.Errorf("%d nodes", got)
	}
}

func TestJoin_RefusesWhatCannotBe(t *testing.T) {
	s := newRealm(t, ca.Config{})
	csr, _ := newCSR(t)
	for name, tt := range map[string]struct {
		req  wire.JoinRequest
		text string
	}{
		"behind":       {wire.JoinRequest{Clock: time.Now().Add(-2 * time.Hour)}, "2h0m0s behind the swarm's"},
		"ahead":        {wire.JoinRequest{Clock: time.Now().Add(61 * time.Minute)}, "1h1m0s ahead of the swarm's"},
		"availability": {wire.JoinRequest{Availability: "gone"}, `invalid Availability: "gone"`},
		"host name":    {wire.JoinRequest{Hostname: strings.Repeat("x", 256)}, "too long"},
	} {
		tt.req.Token, tt.req.CSR = s.cluster().JoinTokens.Worker, csr
		if _, err := s.ca.Join(t.Context(), somewhere, &tt.req); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: s.cluster().JoinTokens.Worker, CSR: csr, Clock: time.Now().Add(59 * time.Minute)}); err != nil {
		t.Errorf("a clock that is a little off: %v", err)
	}
}

func TestJoin_AskedAgainIsTheSameNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRealm(t, ca.Config{})
		csr, _ := newCSR(t)
		tokens := s.cluster().JoinTokens
		ask := func(token string) (*wire.JoinReply, error) {
			return s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: token, CSR: csr})
		}
		replies := make([]*wire.JoinReply, 5)
		var all sync.WaitGroup
		for i := range replies {
			all.Go(func() {
				r, err := ask(tokens.Worker)
				if err != nil {
					t.Error(err)
				}
				replies[i] = r
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
		for _, r := range replies {
			m := &member{chain: r.Certificate, roots: r.Roots}
			if r.NodeID != replies[0].NodeID || m.who(t).ID != r.NodeID {
				t.Errorf("two nodes of one request: %s and %s", replies[0].NodeID, r.NodeID)
			}
		}
		if _, err := ask(tokens.Manager); !errdefs.IsAlreadyExists(err) {
			t.Errorf("the other token: %v", err)
		}
		time.Sleep(11 * time.Minute)
		if _, err := ask(tokens.Worker); !errdefs.IsAlreadyExists(err) {
			t.Errorf("later: %v", err)
		}
		m := s.join(tokens.Worker)
		s.changeNode(m.id, func(n *object.Node) { n.Status.State = swarm.NodeStateReady })
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, m.key)
		if err != nil {
			t.Fatal(err)
		}
		again := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		if _, err = s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: tokens.Worker, CSR: again}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("a node that is there: %v", err)
		}
		if got := s.store.Snapshot().Nodes.Len(); got != 3 {
			t.Errorf("%d nodes, want 3", got)
		}
	})
}

func TestJoin_CannotBeAskedForTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRealm(t, ca.Config{})
		ask := func(from, token string) error {
			_, err := s.ca.Join(t.Context(), netip.MustParseAddr(from), &wire.JoinRequest{Token: token, CSR: []byte("x")})
			return err
		}
		good := s.cluster().JoinTokens.Worker
		for i := range 12 {
			err := ask("198.51.100.7", good)
			if busy := errdefs.IsResourceExhausted(err); busy != (i >= 10) {
				t.Errorf("request %d: %v", i, err)
			}
		}
		if err := ask("198.51.100.200", good); !errdefs.IsResourceExhausted(err) {
			t.Errorf("a neighbour: %v", err)
		}
		time.Sleep(time.Second)
		if err := ask("198.51.100.7", good); errdefs.IsResourceExhausted(err) {
			t.Errorf("a second later: %v", err)
		}
		// A bad token uses the whole burst up, also from another address of the /64.
		if err := ask("2001:db8::1", "bad"); errdefs.IsResourceExhausted(err) {
			t.Errorf("first bad token: %v", err)
		}
		if err := ask("2001:db8::ffff", good); !errdefs.IsResourceExhausted(err) {
			t.Errorf("after a bad token: %v", err)
		}
		if err := ask("2001:db8:0:1::1", good); errdefs.IsResourceExhausted(err) {
			t.Errorf("another network: %v", err)
		}
		time.Sleep(time.Minute)
		refused := 0
		for i := range 30 {
			if errdefs.IsResourceExhausted(ask(netip.AddrFrom4([4]byte{203, 0, byte(i), 1}).String(), good)) {
				refused++
			}
		}
		if refused != 10 {
			t.Errorf("%d of 30 networks at once were refused, want 10", refused)
		}
	})
}

func TestJoin_LeavesNoNodeWithoutACertificate(t *testing.T) {
	s := newRealm(t, ca.Config{})
	s.change(func(c *object.Cluster) { c.RootCA.Key = nil })
	csr, _ := newCSR(t)
	_, err := s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: s.cluster().JoinTokens.Worker, CSR: csr})
	want := "there must be at least one valid, reachable external CA corresponding to the current CA certificate"
	if err == nil || err.Error() != want || s.store.Snapshot().Nodes.Len() != 1 {
		t.Errorf("got %v, %d nodes", err, s.store.Snapshot().Nodes.Len())
	}
}

// TestJoin_NamesTheCommandThatMadeTheNode: the generation is that of the
// command, though others came between the look and the write.
func TestJoin_NamesTheCommandThatMadeTheNode(t *testing.T) {
	s := newRealm(t, ca.Config{})
	busy := &meddler{Local: s.store, before: func() { s.changeNode("m0", func(n *object.Node) { n.Status.Message += "x" }) }}
	s.ca = ca.New(ca.Config{Store: busy, NodeID: "m0", Logger: quiet()})
	m := s.join(s.cluster().JoinTokens.Worker)
	if got, want := m.who(t).Generation, s.node(m.id).Version.Index; got != want {
		t.Errorf("generation %d, want %d", got, want)
	}
}

// meddler does something before each proposal.
type meddler struct {
	*storetest.Local
	before func()
}

func (m *meddler) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	m.before()
	return m.Local.Propose(ctx, tx)
}
