// Package catest is an external certificate authority for tests: a server of
// CFSSL's sign protocol over HTTPS with mutual TLS. It signs what it is asked
// for, by the one profile that is named for the role or, for anything else, as
// CFSSL's default profile would.
//
// It keeps no account of what it signed and has no policy of its own.
package catest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"time"

	"skep/pki"
)

// Path is where the authority signs.
const Path = "/api/v1/cfssl/sign"

// Authority is an authority outside of the swarm.
type Authority struct {
	// Root issues; its key is only here.
	Root *pki.Root
	// Clients are the roots of those who may ask, beside Root.
	Clients []*x509.Certificate
	// Change may change a certificate before it is signed; nil changes nothing.
	Change func(*x509.Certificate)
	// Answer may answer instead of the authority; nil never does.
	Answer http.HandlerFunc
}

// Serve answers on l, which must be on this machine, until ctx ends.
func (a *Authority) Serve(ctx context.Context, l net.Listener) error {
	cert, err := a.server(time.Now())
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AddCert(a.Root.Cert)
	for _, c := range a.Clients {
		clients.AddCert(c)
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+Path, a)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: time.Second,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve authority: %w", err)
	}
	return nil
}

func (a *Authority) key() (crypto.Signer, error) {
	p, err := a.Root.KeyPEM()
	if err != nil {
		return nil, err
	}
	return pki.ParseKey(p)
}

// server is the certificate of the authority's own server.
func (a *Authority) server(now time.Time) (tls.Certificate, error) {
	_, keyPEM, err := pki.NewRequest()
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := pki.ParseKey(keyPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "external authority"},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, key.Public())
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, keyPEM)
}

func (a *Authority) issue(tmpl *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 16)
	rand.Read(b)
	tmpl.SerialNumber = new(big.Int).Rsh(new(big.Int).SetBytes(b), 1)
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.Root.Cert, pub, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// request is what is asked of the authority.
type request struct {
	Request string   `json:"certificate_request"`
	Hosts   []string `json:"hosts"`
	// Subject is that of Request if there is none.
	Subject *struct {
		CN    string
		Names []struct{ O, OU string } `json:"names"`
	} `json:"subject"`
	Profile string `json:"profile"`
}

// ServeHTTP signs, or says why not.
func (a *Authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.Answer != nil {
		a.Answer(w, r)
		return
	}
	cert, err := a.answer(r)
	if err != nil {
		reply(w, http.StatusBadRequest, map[string]any{
			"success": false, "result": nil, "messages": []string{},
			"errors": []map[string]any{{"code": 1100, "message": err.Error()}},
		})
		return
	}
	Reply(w, cert)
}

// Reply answers with a certificate.
func Reply(w http.ResponseWriter, certPEM []byte) {
	reply(w, http.StatusOK, map[string]any{
		"success": true, "result": map[string]string{"certificate": string(certPEM)},
		"errors": []string{}, "messages": []string{},
	})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (a *Authority) answer(r *http.Request) ([]byte, error) {
	var req request
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 1<<20)).Decode(&req); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(req.Request))
	if block == nil {
		return nil, errors.New("no request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		RawSubject:  csr.RawSubject,
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(90 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if req.Subject != nil {
		tmpl.RawSubject, tmpl.Subject = nil, pkix.Name{CommonName: req.Subject.CN}
		for _, n := range req.Subject.Names {
			tmpl.Subject.Organization = append(tmpl.Subject.Organization, n.O)
			tmpl.Subject.OrganizationalUnit = append(tmpl.Subject.OrganizationalUnit, n.OU)
		}
	}
	switch req.Profile {
	case pki.Worker:
	case "CA":
		tmpl.IsCA, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	default:
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range req.Hosts {
		if u, err := url.Parse(h); err == nil && u.Scheme != "" {
			tmpl.URIs = append(tmpl.URIs, u)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	if a.Change != nil {
		a.Change(tmpl)
	}
	return a.issue(tmpl, csr.PublicKey)
}
