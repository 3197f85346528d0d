package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/pki"
	"skep/store/object"
)

const (
	externalTimeout = 5 * time.Second
	maxAnswer       = 256 << 10 // bytes
	// crossProfile is the profile by which external authorities sign others.
	crossProfile = "CA"
)

// external is an authority outside of the swarm that has the key of a root. It
// may refuse, but not choose: what it signs is compared with what was asked for.
type external struct {
	root        *x509.Certificate
	urls        []string
	certificate func() (tls.Certificate, error)
}

// external is the authority for root, as the swarm's spec tells of it: entries
// without a root are those of current.
func (c *CA) external(cfg *swarm.CAConfig, root *x509.Certificate, current []byte) *external {
	return &external{root: root, urls: urls(cfg, root, current), certificate: c.cfg.Certificate}
}

// Reach tells whether one of the external authorities for root can be reached;
// those that cfg names for no root are current's. which is the word for root
// in Swarm's text.
func Reach(ctx context.Context, cfg *swarm.CAConfig, root, current []byte, which string, own func() (tls.Certificate, error)) error {
	certs, err := pki.ParseChain(root)
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "%w", err)
	}
	e := &external{root: certs[0], urls: urls(cfg, certs[0], current), certificate: own}
	conf, err := e.tls()
	if err != nil {
		return err
	}
	for _, u := range e.urls {
		if dial(ctx, u, conf) == nil {
			return nil
		}
	}
	return errUnreachable(which)
}

// dial tries whether there is a server of an authority at an address.
func dial(ctx context.Context, address string, conf *tls.Config) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, externalTimeout)
	defer cancel()
	d := tls.Dialer{Config: conf}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// urls are the external authorities that a spec names for a root.
func urls(cfg *swarm.CAConfig, root *x509.Certificate, current []byte) []string {
	var list []string
	for _, e := range cfg.ExternalCAs {
		of := []byte(e.CACert)
		if len(bytes.TrimSpace(of)) == 0 {
			of = current
		}
		certs, err := pki.ParseChain(of)
		if e.Protocol == swarm.ExternalCAProtocolCFSSL && err == nil && len(certs) == 1 && certs[0].Equal(root) {
			list = append(list, e.URL)
		}
	}
	return list
}

// signRequest is CFSSL's, as far as it is of use here.
type signRequest struct {
	Request string       `json:"certificate_request"`
	Hosts   []string     `json:"hosts,omitempty"`
	Subject *signSubject `json:"subject,omitempty"`
	Profile string       `json:"profile,omitempty"`
}

type signSubject struct {
	CN    string     `json:"CN"`
	Names []signName `json:"names"`
}

type signName struct {
	O  string `json:"O,omitempty"`
	OU string `json:"OU,omitempty"`
}

type signAnswer struct {
	Success bool `json:"success"`
	Result  struct {
		Certificate string `json:"certificate"`
	} `json:"result"`
	Errors []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
}

// sign has the certificate of a node made.
func (e *external) sign(ctx context.Context, who pki.Node, r *request) ([]byte, error) {
	return e.ask(ctx, signRequest{
		Request: string(r.csr),
		Hosts:   who.Hosts(),
		Subject: &signSubject{CN: who.ID, Names: []signName{{O: who.Cluster, OU: who.Role}}},
		Profile: who.Role,
	}, func(cert []byte) error { return checkLeaf(cert, e.root, who, r) })
}

// checkLeaf refuses a certificate that is not the one that was asked for.
func checkLeaf(cert []byte, root *x509.Certificate, who pki.Node, r *request) error {
	chain, err := pki.ParseChain(cert)
	if err != nil {
		return err
	}
	got, err := pki.Verify(chain, []*x509.Certificate{root}, time.Now())
	if err != nil {
		return err
	}
	if got != who {
		return errors.New("the certificate is another node's")
	}
	if key, ok := r.key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(chain[0].PublicKey) {
		return errors.New("the certificate is of another key")
	}
	return nil
}

// crossSign has the key of next put under the authority's root.
func (e *external) crossSign(ctx context.Context, next *pki.Root) ([]byte, error) {
	csr, err := next.Request()
	if err != nil {
		return nil, err
	}
	req := signRequest{Request: string(csr), Profile: crossProfile}
	return e.ask(ctx, req, func(cert []byte) error { return pki.CheckCross(cert, next.Cert, e.root) })
}

// ask goes through the authority's addresses until one gives a certificate
// that check is content with.
func (e *external) ask(ctx context.Context, req signRequest, check func(cert []byte) error) ([]byte, error) {
	if len(e.urls) == 0 {
		return nil, errUnreachable("current")
	}
	client, err := e.client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	var errs []error
	for _, u := range e.urls {
		cert, err := post(ctx, client, u, req)
		if err == nil {
			err = check(cert)
		}
		if err == nil {
			return cert, nil
		}
		errs = append(errs, fmt.Errorf("external CA %s: %w", u, err))
	}
	return nil, object.Errorf(errdefs.ErrUnavailable, "%w", errors.Join(errs...))
}

// tls is how the authority and this manager know each other.
func (e *external) tls() (*tls.Config, error) {
	own, err := e.certificate()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(e.root)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{own}}, nil
}

// client speaks to the authority as this manager, and to nobody else.
func (e *external) client() (*http.Client, error) {
	conf, err := e.tls()
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:       externalTimeout,
		Transport:     &http.Transport{TLSClientConfig: conf},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func post(ctx context.Context, client *http.Client, address string, body signRequest) ([]byte, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return parseAnswer(resp.StatusCode, answer)
}

// parseAnswer is the certificate in an authority's answer.
func parseAnswer(status int, body []byte) ([]byte, error) {
	var a signAnswer
	if len(body) > maxAnswer {
		return nil, errors.New("the answer is too long")
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, fmt.Errorf("status %d, and an answer that is none: %w", status, err)
	}
	if status != http.StatusOK || !a.Success {
		if len(a.Errors) > 0 {
			return nil, fmt.Errorf("status %d, error %d: %.200q", status, a.Errors[0].Code, a.Errors[0].Message)
		}
		return nil, fmt.Errorf("status %d", status)
	}
	return []byte(a.Result.Certificate), nil
}

func errUnreachable(which string) error {
	return object.Errorf(errdefs.ErrInvalidArgument, "there must be at least one valid, reachable external CA corresponding to the %s CA certificate", which)
}
