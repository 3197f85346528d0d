package ca_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/manager/ca/catest"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

// serve runs an authority until the test ends; it is where that is.
func serve(tb testing.TB, a *catest.Authority) (url string) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return "https://" + l.Addr().String() + catest.Path
}

// outside takes the root's key out of a realm and gives it to an authority.
// The manager m0 has a certificate by which it asks.
func outside(t *testing.T) (*realm, *catest.Authority) {
	t.Helper()
	s := newRealm(t, ca.Config{})
	root, err := pki.ParseRoot(s.cluster().RootCA.Cert, s.cluster().RootCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := root.Enroll(pki.Node{ID: "m0", Cluster: cluster, Role: pki.Manager}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if s.own, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	a := &catest.Authority{Root: root}
	url := serve(t, a)
	s.change(func(c *object.Cluster) {
		c.RootCA.Key = nil
		c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{
			{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:1/nobody"},
			{Protocol: swarm.ExternalCAProtocolCFSSL, URL: url},
		}
	})
	return s, a
}

func TestExternal_IssuesAndRenews(t *testing.T) {
	s, _ := outside(t)
	for _, token := range []string{s.cluster().JoinTokens.Worker, s.cluster().JoinTokens.Manager} {
		m := s.join(token)
		n := s.node(m.id)
		if got := m.who(t); got.ID != m.id || got.Generation != n.Version.Index {
			t.Errorf("got %+v", got)
		}
		if err := s.renew(m); err != nil {
			t.Error(err)
		}
	}
}

func TestExternal_IsNotBelieved(t *testing.T) {
	s, a := outside(t)
	worker := s.cluster().JoinTokens.Worker
	try := func() error {
		csr, _ := newCSR(t)
		s.ca = ca.New(ca.Config{Store: s.store, Logger: quiet(), Certificate: s.certificate})
		_, err := s.ca.Join(t.Context(), somewhere, &wire.JoinRequest{Token: worker, CSR: csr})
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	nodes := s.store.Snapshot().Nodes.Len()
	for name, change := range map[string]func(*x509.Certificate){
		"another node":  func(c *x509.Certificate) { c.Subject.CommonName = "m0" },
		"another swarm": func(c *x509.Certificate) { c.Subject.Organization = []string{"c2"} },
		"another role":  func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{pki.Manager} },
		"no names":      func(c *x509.Certificate) { c.DNSNames, c.URIs = nil, nil },
		"a manager":     func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, pki.Manager) },
		"an older one":  func(c *x509.Certificate) { c.URIs[0].Path += "0" },
		"a server":      func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"an authority":  func(c *x509.Certificate) { c.IsCA = true },
		"expired":       func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		"a bigger subject": func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: c.Subject.CommonName, Organization: append(c.Subject.Organization, "x"), OrganizationalUnit: c.Subject.OrganizationalUnit}
		},
	} {
		a.Change = change
		if err := try(); err == nil || !strings.Contains(err.Error(), "external CA https://127.0.0.1") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	a.Change = nil
	for name, answer := range map[string]http.HandlerFunc{
		"not found": http.NotFound,
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
		"too long":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat(" ", 1<<20)) },
		"refusal": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"success":false,"errors":[{"code":9,"message":"no"}]}`)
		},
		"nothing":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"success":true,"result":{}}`) },
		"the root": func(w http.ResponseWriter, _ *http.Request) { catest.Reply(w, a.Root.PEM()) },
		"another key": func(w http.ResponseWriter, r *http.Request) {
			var req map[string]any
			if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
				t.Error(err)
			}
			csr, _ := newCSR(t)
			req["certificate_request"] = string(csr)
			body, err := json.Marshal(req)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			(&catest.Authority{Root: a.Root}).ServeHTTP(w, r)
		},
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
	} {
		a.Answer = answer
		if err := try(); err == nil {
			t.Errorf("%s: believed", name)
		}
	}
	if got := s.store.Snapshot().Nodes.Len(); got != nodes {
		t.Errorf("%d nodes without a certificate", got-nodes)
	}
}

// TestExternal_ChangesOfRoot: from the swarm's own root to one outside, to
// another of its own, and not from one outside to another.
func TestExternal_ChangesOfRoot(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := newRealm(t, ca.Config{Batch: 1000})
	f := &fleet{realm: s, ctx: ctx, check: true, members: map[string]*member{}, awake: map[string]bool{}, slow: func(string) time.Duration { return 0 }}
	f.add(f.founder())
	f.add(f.join(s.cluster().JoinTokens.Worker))
	defer f.all.Wait()
	defer cancel()
	current, err := pki.ParseRoot(s.cluster().RootCA.Cert, s.cluster().RootCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := current.Enroll(pki.Node{ID: "m0", Cluster: cluster, Role: pki.Manager}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if s.own, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	url := serve(t, &catest.Authority{Root: root, Clients: []*x509.Certificate{current.Cert}})
	f.start()
	f.lead(f.ca)
	s.change(func(c *object.Cluster) {
		c.Spec.CAConfig.SigningCACert = string(root.PEM())
		c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: url, CACert: string(root.PEM())}}
	})
	f.settled(t, 20*time.Second)
	c := s.cluster()
	if of, others := f.issuers(); string(c.RootCA.Cert) != string(root.PEM()) || len(c.RootCA.Key) != 0 || of != 2 || others != 0 {
		t.Fatalf("%d certificates of the root outside, %d others", of, others)
	}
	s.rotate()
	f.settled(t, 20*time.Second)
	c = s.cluster()
	if of, others := f.issuers(); string(c.RootCA.Cert) == string(root.PEM()) || len(c.RootCA.Key) == 0 || of != 2 || others != 0 {
		t.Errorf("%d certificates of the new root, %d others", of, others)
	}
	for _, old := range c.RootCA.Retired {
		if len(old.Cross) == 0 {
			t.Error("a former root says nothing of the next")
		}
	}
}

func TestReach_FindsTheAuthorityOfARoot(t *testing.T) {
	s, a := outside(t)
	c := s.cluster()
	other, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	url := c.Spec.CAConfig.ExternalCAs[1].URL
	for _, tt := range []struct {
		name  string
		cas   []*swarm.ExternalCA
		root  []byte
		which string
		ok    bool
	}{
		{"the current one", c.Spec.CAConfig.ExternalCAs, c.RootCA.Cert, "current", true},
		{"named", []*swarm.ExternalCA{{Protocol: "cfssl", URL: url, CACert: string(a.Root.PEM())}}, c.RootCA.Cert, "current", true},
		{"none", nil, c.RootCA.Cert, "current", false},
		{"not there", c.Spec.CAConfig.ExternalCAs[:1], c.RootCA.Cert, "current", false},
		{"for another root", c.Spec.CAConfig.ExternalCAs, other.PEM(), "desired", false},
		{"says to be for another root", []*swarm.ExternalCA{{Protocol: "cfssl", URL: url, CACert: string(other.PEM())}}, other.PEM(), "desired", false},
	} {
		err := ca.Reach(t.Context(), &swarm.CAConfig{ExternalCAs: tt.cas}, tt.root, c.RootCA.Cert, tt.which, s.certificate)
		want := "there must be at least one valid, reachable external CA corresponding to the " + tt.which + " CA certificate"
		if tt.ok && err != nil || !tt.ok && (err == nil || err.Error() != want) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}
