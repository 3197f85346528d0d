package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"skep/pki"
	"skep/pki/seal"
)

// Names in the data directory.
const (
	frontName    = "front"
	frontKeyName = "front.key"
)

// serverLife is how long a server's certificate is valid that nobody signs;
// clients pin it, so it is not replaced before it must be.
const serverLife = 10 * 365 * 24 * time.Hour

// Front is what a node needs to talk to its operator before its keystore is
// open: the certificate that it shows, and a key to seal with what it notes
// until then. Its key lies beside it, so that whoever takes the whole disk can
// pass for the node in front of its operator; it opens nothing else.
type Front struct {
	folder
	ring  *seal.Keyring
	state server
}

// server is the certificate of the admin API on tcp, where the node file has
// none; PEM.
type server struct {
	Key         seal.Secret `cbor:"key"`
	Certificate []byte      `cbor:"certificate"`
}

// OpenFront opens the front in dir, or makes one. Only one process may have it open.
func OpenFront(dir string) (*Front, error) {
	at, err := openFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("open front: %w", err)
	}
	f := &Front{folder: at}
	if err := f.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open front: %w", err), f.close())
	}
	return f, nil
}

func (f *Front) open() error {
	key, err := f.read(frontKeyName)
	if errors.Is(err, os.ErrNotExist) {
		key = seal.NewSecret()
		err = f.replace(frontKeyName, key)
	}
	if err != nil {
		return err
	}
	if f.ring, err = seal.NewKeyring(key); err != nil {
		return err
	}
	sealed, err := f.read(frontName)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return decrypt(f.ring, frontName, sealed, &f.state)
}

// Close gives the front up.
func (f *Front) Close() error { return f.close() }

// Keyring seals what is noted while the keystore is not open.
func (f *Front) Keyring() *seal.Keyring { return f.ring }

// Server is the certificate of the admin API on tcp. It is made at the first
// call, and again when it ends or when hosts (names and addresses) are not all
// in it; else it stays the same.
func (f *Front) Server(hosts []string, now time.Time) (tls.Certificate, error) {
	if cert, err := tls.X509KeyPair(f.state.Certificate, f.state.Key); err == nil && covers(cert.Leaf, hosts, now) {
		return cert, nil
	}
	certPEM, keyPEM, err := pki.SelfSigned(hosts, now, serverLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	next := server{Key: keyPEM, Certificate: certPEM}
	b, err := encrypt(f.ring, frontName, next)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("write front: %w", err)
	}
	if err := f.replace(frontName, b); err != nil {
		return tls.Certificate{}, fmt.Errorf("write front: %w", err)
	}
	f.state = next
	return tls.X509KeyPair(certPEM, keyPEM)
}

func covers(leaf *x509.Certificate, hosts []string, now time.Time) bool {
	missing := func(host string) bool { return leaf.VerifyHostname(host) != nil }
	return !slices.ContainsFunc(hosts, missing) && now.Before(leaf.NotAfter)
}
