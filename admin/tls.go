package admin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
)

// ServerTLS is the configuration of tcp listeners: TLS 1.3, and nobody without
// a certificate of the operators' authority, which is not the swarm's own.
func ServerTLS(server tls.Certificate, clientCA []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(clientCA) {
		return nil, errors.New("client_ca: no certificate in it")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{server},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		// Connections become streams, which HTTP/2 cannot.
		NextProtos: []string{"http/1.1"},
		// A resumed session would outlive the certificate it began with.
		SessionTicketsDisabled: true,
	}, nil
}

// tlsPeer is who is at the other end of a TLS connection: the certificate's
// common name, with the role that its organisational unit names. Units that
// name no role give none.
func tlsPeer(r *http.Request) Principal {
	p := Principal{Transport: "tcp", Detail: r.RemoteAddr}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return p
	}
	subject := r.TLS.VerifiedChains[0][0].Subject
	p.Name = subject.CommonName
	for _, unit := range subject.OrganizationalUnit {
		if role, err := ParseRole(unit); err == nil {
			p.Role = max(p.Role, role)
		}
	}
	return p
}
