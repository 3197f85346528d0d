package ca_test

import (
	"crypto/x509"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/pki"
)

// FuzzJoin: strangers get in by the swarm's tokens only.
func FuzzJoin(f *testing.F) {
	s := newRealm(f, ca.Config{})
	csr, _ := newCSR(f)
	tokens := s.cluster().JoinTokens
	f.Add(tokens.Worker, csr, "active", "h")
	f.Add(tokens.Manager, []byte("x"), "", "")
	f.Add("SWMTKN-1-"+strings.Repeat("0", 50)+"-"+strings.Repeat("0", 25), csr, "drain", "h")
	f.Fuzz(func(t *testing.T, token string, csr []byte, availability, host string) {
		// A new one each time: none of them has to wait.
		c := ca.New(ca.Config{Store: s.store, NodeID: "m0", Logger: quiet(), Certificate: s.certificate})
		req := &wire.JoinRequest{Token: token, CSR: csr, Hostname: host}
		req.Availability = swarm.NodeAvailability(availability)
		r, err := c.Join(t.Context(), netip.Addr{}, req)
		if err != nil {
			return
		}
		if token != tokens.Worker && token != tokens.Manager {
			t.Errorf("let in by %q", token)
		}
		if got := (&member{chain: r.Certificate, roots: r.Roots}).who(t); got.ID != r.NodeID || (got.Role == pki.Manager) != (token == tokens.Manager) {
			t.Errorf("got %+v", got)
		}
	})
}

// FuzzReenrol: what is not signed by a former key gets nothing.
func FuzzReenrol(f *testing.F) {
	s := newRealm(f, ca.Config{})
	m := s.join(s.cluster().JoinTokens.Worker)
	csr, _ := newCSR(f)
	sig, err := pki.Endorse(csr, m.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.chain, csr, sig)
	f.Add(s.cluster().RootCA.Cert, csr, sig)
	f.Fuzz(func(t *testing.T, chain, csr, sig []byte) {
		c := ca.New(ca.Config{Store: s.store, NodeID: "m0", Logger: quiet(), Certificate: s.certificate})
		// All certificates of this swarm are still valid.
		if r, err := c.Reenrol(t.Context(), netip.Addr{}, &wire.ReenrolRequest{CSR: csr, Chain: chain, Signature: sig}); err == nil {
			t.Errorf("enrolled %s", r.NodeID)
		}
	})
}

// FuzzAnswer: an authority outside may say anything; nothing comes of it but
// certificates, which are looked at before they are used.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"success":true,"result":{"certificate":"x"},"errors":[],"messages":[]}`))
	f.Add(400, []byte(`{"success":false,"result":null,"errors":[{"code":1,"message":"no"}]}`))
	f.Add(200, []byte(`[]`))
	s := newRealm(f, ca.Config{})
	roots := []*x509.Certificate{s.rootOf(s.cluster().RootCA.Cert)}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		cert, err := ca.ParseAnswer(status, body)
		if err != nil {
			return
		}
		if status != 200 || !json.Valid(body) {
			t.Errorf("status %d, %q: believed", status, body)
		}
		if chain, err := pki.ParseChain(cert); err == nil {
			if n, err := pki.Verify(chain, roots, time.Now()); err == nil {
				t.Errorf("believed %+v", n)
			}
		}
	})
}
