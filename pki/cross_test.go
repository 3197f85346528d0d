package pki_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"skep/pki"
)

// TestCrossSign_LeadsFromOneRootToTheOther is the table of what is believed
// while the root changes.
func TestCrossSign_LeadsFromOneRootToTheOther(t *testing.T) {
	now := time.Now()
	old, next, third := newRoot(t, now), newRoot(t, now), newRoot(t, now)
	cross := crossOf(t, old, next, now)
	later := crossOf(t, next, third, now)
	node := pki.Node{ID: "n", Cluster: "c", Role: pki.Worker, Generation: 7}
	was, _ := issue(t, old, node, now, pki.MinExpiry)
	is, _ := issue(t, next, node, now, pki.MinExpiry)
	will, _ := issue(t, third, node, now, pki.MinExpiry)
	chain := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		roots []*x509.Certificate
		ok    bool
	}{
		{"old leaf, old root", was, chain(old.Cert), true},
		{"old leaf, both", was, chain(old.Cert, next.Cert), true},
		{"old leaf, new root", was, chain(next.Cert), false},
		{"old leaf and cross, new root", chain(was[0], cross), chain(next.Cert), false},
		{"new leaf and cross, old root", chain(is[0], cross), chain(old.Cert), true},
		{"new leaf and cross, new root", chain(is[0], cross), chain(next.Cert), true},
		{"new leaf and cross, both", chain(is[0], cross), chain(old.Cert, next.Cert), true},
		{"new leaf alone, old root", is, chain(old.Cert), false},
		{"new leaf alone, new root", is, chain(next.Cert), true},
		{"two changes, first root", chain(will[0], later, cross), chain(old.Cert), true},
		{"two changes, one missing", chain(will[0], later), chain(old.Cert), false},
		{"the cross itself", chain(cross), chain(old.Cert), false},
	} {
		got, err := pki.Verify(tt.chain, tt.roots, now)
		if (err == nil) != tt.ok || tt.ok && got != node {
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		}
	}
	for name, pair := range map[string][2]*pki.Root{"of another root": {third, next}, "for another root": {old, third}} {
		pem, err := pair[0].CrossSign(pair[1].Cert, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := pki.CheckCross(pem, next.Cert, old.Cert); err == nil {
			t.Errorf("a cross %s is believed", name)
		}
	}
	if subject, key := pki.Issuer(is, chain(old.Cert, next.Cert)); string(key) != string(next.Cert.RawSubjectPublicKeyInfo) || string(subject) != string(next.Cert.RawSubject) {
		t.Error("the issuer is not the new root")
	}
	if _, key := pki.Issuer(is, chain(old.Cert)); key != nil {
		t.Error("an issuer that is not known")
	}
}

func crossOf(t *testing.T, old, next *pki.Root, now time.Time) *x509.Certificate {
	t.Helper()
	pem, err := old.CrossSign(next.Cert, now)
	if err != nil {
		t.Fatal(err)
	}
	if err = pki.CheckCross(pem, next.Cert, old.Cert); err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseChain(pem)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

func TestCheckSuccessor_RefusesInSwarmsWords(t *testing.T) {
	now := time.Now()
	old, next := newRoot(t, now), newRoot(t, now)
	keyPEM, _ := old.KeyPEM()
	key, err := pki.ParseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := *old.Cert
	tmpl.NotAfter = now.Add(10 * 365 * 24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	twin, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	for want, in := range map[string][]byte{
		"": next.PEM(),
		"the desired CA certificate cannot contain multiple certificates":  append(next.PEM(), old.PEM()...),
		"CA certificate expires too soon":                                  newRoot(t, now.Add(-pki.RootLife+300*24*time.Hour)).PEM(),
		"CA certificate is not valid yet":                                  newRoot(t, now.Add(2*time.Hour)).PEM(),
		"Cannot update to a cert with an identical key":                    (&pki.Root{Cert: twin}).PEM(),
		"the desired CA certificate cannot be read: no certificate in PEM": nil,
	} {
		got, err := pki.CheckSuccessor(in, old.Cert, now)
		if want == "" && (err != nil || !got.Equal(next.Cert)) || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := pki.CheckSuccessor(old.PEM(), old.Cert, now); err != nil {
		t.Errorf("the same root: %v", err)
	}
}

func TestEndorse_IsOfOneKeyForOneRequest(t *testing.T) {
	now := time.Now()
	root := newRoot(t, now)
	chain, keyPEM := issue(t, root, pki.Node{ID: "n", Cluster: "c", Role: pki.Worker}, now, pki.MinExpiry)
	other, _ := issue(t, root, pki.Node{ID: "m", Cluster: "c", Role: pki.Worker}, now, pki.MinExpiry)
	key, err := pki.ParseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	csr, _, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := pki.Endorse(csr, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.CheckEndorsement(csr, sig, chain[0]); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]error{
		"another node's":  pki.CheckEndorsement(csr, sig, other[0]),
		"another request": pki.CheckEndorsement(append(csr, ' '), sig, chain[0]),
		"none":            pki.CheckEndorsement(csr, nil, chain[0]),
	} {
		if bad == nil {
			t.Errorf("%s: believed", name)
		}
	}
	pub, ed, _ := ed25519.GenerateKey(rand.Reader)
	if sig, err = pki.Endorse(csr, ed); err != nil || pki.CheckEndorsement(csr, sig, &x509.Certificate{PublicKey: pub}) != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

// FuzzSuccessor: roots that operators give are refused or read, never worse.
func FuzzSuccessor(f *testing.F) {
	old, err := pki.NewRoot(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old.PEM())
	f.Add(append(old.PEM(), old.PEM()...))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := pki.CheckSuccessor(in, old.Cert, time.Now())
		if err == nil && (c == nil || !c.IsCA) {
			t.Errorf("took %v", c)
		}
	})
}
