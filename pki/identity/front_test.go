package identity_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skep/pki/identity"
	"skep/pki/seal"
)

func openFront(t *testing.T, dir string) *identity.Front {
	t.Helper()
	f, err := identity.OpenFront(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestFront_ServerCertificateStaysUntilItMustNot(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	serve := func(f *identity.Front, now time.Time, hosts ...string) []byte {
		t.Helper()
		c, err := f.Server(hosts, now)
		if err != nil {
			t.Fatal(err)
		}
		return c.Certificate[0]
	}
	first := serve(openFront(t, dir), now, "mgr1", "10.0.0.1")
	f := openFront(t, dir)
	if !bytes.Equal(first, serve(f, now.Add(time.Hour), "10.0.0.1")) {
		t.Error("made another without need")
	}
	if bytes.Equal(first, serve(f, now, "10.0.0.2")) {
		t.Error("kept one that is not for the address")
	}
	second := serve(f, now, "10.0.0.2")
	if bytes.Equal(second, serve(f, now.Add(11*365*24*time.Hour), "10.0.0.2")) {
		t.Error("kept one that has expired")
	}
}

func TestFront_OpensWhileTheKeystoreIsLocked(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	cert, err := openFront(t, dir).Server([]string{"n1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Lock(seal.NewSecret(), 1); err != nil {
		t.Fatal(err)
	}
	closeNow(t, k)
	if _, err := identity.Open(dir); !errors.Is(err, identity.ErrLocked) {
		t.Errorf("got %v", err)
	}
	again, err := openFront(t, dir).Server([]string{"n1"}, time.Now())
	if err != nil || !bytes.Equal(again.Certificate[0], cert.Certificate[0]) {
		t.Errorf("another certificate, %v", err)
	}
	for _, name := range []string{"front", "front.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Contains(b, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds the key as it is, %v", name, err)
		}
	}
}
