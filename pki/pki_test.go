package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/pki"
)

func newRoot(t *testing.T, now time.Time) *pki.Root {
	t.Helper()
	r, err := pki.NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// issue makes a node's certificate and its key.
func issue(t *testing.T, r *pki.Root, n pki.Node, now time.Time, expiry time.Duration) (chain []*x509.Certificate, keyPEM []byte) {
	t.Helper()
	certPEM, keyPEM, err := r.Enroll(n, now, expiry)
	if err != nil {
		t.Fatal(err)
	}
	chain, err = pki.ParseChain(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return chain, keyPEM
}

func TestRoot_IsSwarmsAndComesBackFromItsPEM(t *testing.T) {
	now := time.Now()
	r := newRoot(t, now)
	if r.Cert.Subject.CommonName != "swarm-ca" || !r.Cert.IsCA || r.Cert.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
		t.Errorf("got %v", r.Cert.Subject)
	}
	if life := r.Cert.NotAfter.Sub(now); life < pki.RootLife-time.Minute || !r.Cert.NotBefore.Before(now.Add(-59*time.Minute)) {
		t.Errorf("valid from %s to %s", r.Cert.NotBefore, r.Cert.NotAfter)
	}
	keyPEM, err := r.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.ParseRoot(r.PEM(), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	n := pki.Node{ID: "n1", Cluster: "c1", Role: pki.Manager}
	chain, _ := issue(t, again, n, now, pki.MinExpiry)
	if got, err := pki.Verify(chain, []*x509.Certificate{r.Cert}, now); err != nil || got != n {
		t.Errorf("got %+v, %v", got, err)
	}
	trust, err := pki.ParseRoot(r.PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Issue(n, chain[0].PublicKey, now, pki.MinExpiry); err == nil {
		t.Error("issued without a key")
	}
}

func TestParseRoot_RefusesWhatIsNoRoot(t *testing.T) {
	now := time.Now()
	a, b := newRoot(t, now), newRoot(t, now)
	keyA, _ := a.KeyPEM()
	keyB, _ := b.KeyPEM()
	leaf, _ := issue(t, a, pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}, now, pki.MinExpiry)
	leafPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf[0].Raw})
	for name, in := range map[string][2][]byte{
		"nothing":          {nil, nil},
		"two":              {append(a.PEM(), b.PEM()...), keyA},
		"another's key":    {a.PEM(), keyB},
		"a leaf":           {leafPEM, nil},
		"a key for a cert": {keyA, nil},
		"a cert for a key": {a.PEM(), a.PEM()},
		"huge":             {bytes.Repeat([]byte("x"), 1<<20), nil},
	} {
		if _, err := pki.ParseRoot(in[0], in[1]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestIssue_SaysWhoTheNodeIs(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	root := newRoot(t, now)
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, tt := range []struct {
		role  string
		names []string
		usage []x509.ExtKeyUsage
	}{
		{pki.Manager, []string{"swarm-manager", "n1", "swarm-ca"}, both},
		{pki.Worker, []string{"swarm-worker", "n1"}, both[:1]},
	} {
		chain, keyPEM := issue(t, root, pki.Node{ID: "n1", Cluster: "c1", Role: tt.role}, now, 2*time.Hour)
		c := chain[0]
		want := pkix.Name{CommonName: "n1", Organization: []string{"c1"}, OrganizationalUnit: []string{tt.role}}
		if c.Subject.String() != want.String() || !slices.Equal(c.ExtKeyUsage, tt.usage) || c.IsCA {
			t.Errorf("%s: got %s, %v", tt.role, c.Subject, c.ExtKeyUsage)
		}
		if diff := cmp.Diff(tt.names, c.DNSNames); diff != "" || c.URIs[0].String() != "skep://c1/n1/0" {
			t.Errorf("%s: %s, %v", tt.role, diff, c.URIs)
		}
		if !c.NotBefore.Equal(now.Add(-time.Hour)) || !c.NotAfter.Equal(now.Add(2*time.Hour)) {
			t.Errorf("%s: valid from %s to %s", tt.role, c.NotBefore, c.NotAfter)
		}
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), keyPEM); err != nil {
			t.Errorf("%s: %v", tt.role, err)
		}
	}
}

func TestIssue_EndsWithTheRootAndRefusesTheRest(t *testing.T) {
	now := time.Now()
	root := newRoot(t, now)
	node := pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}
	late := root.Cert.NotAfter.Add(-90 * time.Minute)
	chain, _ := issue(t, root, node, late, pki.DefaultExpiry)
	if !chain[0].NotAfter.Equal(root.Cert.NotAfter) {
		t.Errorf("ends %s, the root %s", chain[0].NotAfter, root.Cert.NotAfter)
	}
	good := chain[0].PublicKey
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	for name, issue := range map[string]func() ([]byte, error){
		"expired root": func() ([]byte, error) {
			return root.Issue(node, good, root.Cert.NotAfter.Add(time.Second), pki.MinExpiry)
		},
		"short life": func() ([]byte, error) { return root.Issue(node, good, now, pki.MinExpiry-1) },
		"no id": func() ([]byte, error) {
			return root.Issue(pki.Node{Cluster: "c", Role: pki.Worker}, good, now, pki.MinExpiry)
		},
		"no cluster": func() ([]byte, error) {
			return root.Issue(pki.Node{ID: "n", Role: pki.Worker}, good, now, pki.MinExpiry)
		},
		"strange role": func() ([]byte, error) {
			return root.Issue(pki.Node{ID: "n", Cluster: "c", Role: "king"}, good, now, pki.MinExpiry)
		},
		"P-384": func() ([]byte, error) { return root.Issue(node, p384.Public(), now, pki.MinExpiry) },
		"RSA":   func() ([]byte, error) { return root.Issue(node, weak.Public(), now, pki.MinExpiry) },
	} {
		if _, err := issue(); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if err := pki.CheckExpiry(time.Minute); err == nil || err.Error() != "minimum certificate expiry time is: 1h0m0s" {
		t.Errorf("got %v", err)
	}
}

// forge signs whatever a template says with the root's key.
func forge(t *testing.T, root *pki.Root, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	now := time.Now()
	chain, _ := issue(t, root, pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}, now, pki.MinExpiry)
	tmpl := *chain[0]
	tmpl.SerialNumber = big.NewInt(2)
	tmpl.RawSubject = nil
	tmpl.ExtraExtensions = nil
	change(&tmpl)
	keyPEM, _ := root.KeyPEM()
	key, err := pki.ParseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, root.Cert, chain[0].PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

func TestVerify_BelievesOnlyWhatTheRootIssued(t *testing.T) {
	now := time.Now()
	root, other := newRoot(t, now), newRoot(t, now)
	roots := []*x509.Certificate{root.Cert}
	node := pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}
	chain, _ := issue(t, root, node, now, pki.MinExpiry)
	foreign, _ := issue(t, other, node, now, pki.MinExpiry)
	if got, err := pki.Verify(forge(t, root, func(*x509.Certificate) {}), roots, now); err != nil || got != node {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, v := range map[string]struct {
		chain []*x509.Certificate
		now   time.Time
	}{
		"nothing":             {nil, now},
		"expired":             {chain, now.Add(pki.MinExpiry + time.Second)},
		"not yet":             {chain, now.Add(-2 * time.Hour)},
		"another root":        {foreign, now},
		"another root's sent": {append(foreign, root.Cert), now},
		"the root itself":     {roots, now},
		"an authority":        {forge(t, root, func(c *x509.Certificate) { c.IsCA = true }), now},
		"two roles":           {forge(t, root, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{pki.Worker, pki.Manager} }), now},
		"role by name only":   {forge(t, root, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{pki.Manager} }), now},
		"another's name":      {forge(t, root, func(c *x509.Certificate) { c.DNSNames = []string{"swarm-worker", "m"} }), now},
		"no URI":              {forge(t, root, func(c *x509.Certificate) { c.URIs = nil }), now},
		"a worker that serves": {forge(t, root, func(c *x509.Certificate) {
			c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}), now},
		"no usage": {forge(t, root, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), now},
	} {
		if got, err := pki.Verify(v.chain, roots, v.now); err == nil {
			t.Errorf("%s: believed %+v", name, got)
		}
	}
}

func TestVerify_TellsOfClocks(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	root := newRoot(t, now)
	chain, _ := issue(t, root, pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}, now, pki.MinExpiry)
	for _, tt := range []struct {
		at   time.Duration
		want string
	}{
		{-5 * time.Hour, "verify certificate: it is not valid before 2026-11-21T11:00:00Z, and this machine's clock says 2026-11-21T07:00:00Z: a clock is 5h0m0s off or more, set it and try again"},
		{2 * time.Hour, "verify certificate: it expired at 2026-11-21T13:00:00Z, and this machine's clock says 2026-11-21T14:00:00Z"},
	} {
		_, err := pki.Verify(chain, []*x509.Certificate{root.Cert}, now.Add(tt.at))
		if _, ok := errors.AsType[*pki.ClockError](err); !ok || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestParseRequest_IgnoresEverythingButTheKey(t *testing.T) {
	sign := func(key any, tmpl *x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	boast := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "other", OrganizationalUnit: []string{pki.Manager}}, DNSNames: []string{"swarm-manager"}}
	for _, key := range []any{ec, ed} {
		pub, err := pki.ParseRequest(sign(key, boast))
		if err != nil {
			t.Errorf("%T: %v", key, err)
			continue
		}
		root := newRoot(t, time.Now())
		certPEM, err := root.Issue(pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}, pub, time.Now(), pki.MinExpiry)
		if err != nil {
			t.Fatal(err)
		}
		chain, _ := pki.ParseChain(certPEM)
		if n, err := pki.Verify(chain, []*x509.Certificate{root.Cert}, time.Now()); err != nil || n.ID != "n" || n.Role != pki.Worker {
			t.Errorf("got %+v, %v", n, err)
		}
	}
	good := sign(ec, boast)
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-3] ^= 1
	for name, in := range map[string][]byte{
		"nothing": nil, "not PEM": []byte("x"), "another block": bytes.ReplaceAll(good, []byte(" REQUEST"), nil),
		"a broken signature": pem.EncodeToMemory(block), "P-521": sign(p521, boast), "RSA": sign(weak, boast),
		"huge": []byte(strings.Repeat("x", 1<<20)),
	} {
		if _, err := pki.ParseRequest(in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRenewal_IsInTheSecondHalfOfLife(t *testing.T) {
	born := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		life, back time.Duration
		fraction   float64
		want       time.Duration
	}{
		{100 * time.Hour, time.Hour, 0, 50 * time.Hour},
		{100 * time.Hour, time.Hour, 0.5, 65 * time.Hour},
		{100 * time.Hour, time.Hour, 1, 80 * time.Hour},
		{time.Hour, time.Hour, 0, 30 * time.Minute},
		{time.Hour, time.Hour, 1, 48 * time.Minute},
		{time.Hour, 0, 1, 54 * time.Minute}, // of another authority
	} {
		c := &x509.Certificate{NotBefore: born.Add(-tt.back), NotAfter: born.Add(tt.life)}
		if got := pki.Renewal(c, tt.fraction).Sub(born); got != tt.want {
			t.Errorf("life %s, %v: got %s, want %s", tt.life, tt.fraction, got, tt.want)
		}
	}
}

func TestNext_WaitsTwiceAsLongEachTime(t *testing.T) {
	born := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: born.Add(-time.Hour), NotAfter: born.Add(100 * time.Hour)}
	due := born.Add(50 * time.Hour)
	for _, tt := range []struct {
		now      time.Time
		failures int
		want     time.Time
	}{
		{born, 0, due},
		{due.Add(time.Minute), 0, due.Add(time.Minute)},
		{due, 1, due.Add(5 * time.Second)},
		{due, 4, due.Add(40 * time.Second)},
		{due, 10, due.Add(2560 * time.Second)},
		{due, 11, due.Add(time.Hour)},
		{due, 1 << 40, due.Add(time.Hour)},
	} {
		if got := pki.Next(c, tt.now, 0, tt.failures); !got.Equal(tt.want) {
			t.Errorf("at %s after %d failures: got %s, want %s", tt.now, tt.failures, got, tt.want)
		}
	}
}

func TestSelfSigned_ServesItsNames(t *testing.T) {
	certPEM, keyPEM, err := pki.SelfSigned([]string{"mgr1", "10.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Error(err)
	}
	chain, _ := pki.ParseChain(certPEM)
	pool := x509.NewCertPool()
	pool.AddCert(chain[0])
	for _, name := range []string{"mgr1", "10.0.0.1"} {
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParse: strangers' PEM is refused or read, never worse.
func FuzzParse(f *testing.F) {
	csr, key, err := pki.NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add(key)
	f.Add(root.PEM())
	f.Fuzz(func(t *testing.T, in []byte) {
		if pub, err := pki.ParseRequest(in); err == nil && pub == nil {
			t.Error("a request without a key")
		}
		if chain, err := pki.ParseChain(in); err == nil {
			if n, err := pki.Verify(chain, []*x509.Certificate{root.Cert}, time.Now()); err == nil {
				t.Errorf("believed %+v", n)
			}
		}
		if key, err := pki.ParseKey(in); err == nil && key.Public() == nil {
			t.Error("a key without a public half")
		}
	})
}
