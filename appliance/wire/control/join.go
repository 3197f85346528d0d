package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"skep/appliance/wire"
	"skep/pki"
	"skep/pki/join"
)

// Join calls an anonymous route of the manager at addr, for a machine that
// knows the swarm by a token only. Nothing is sent before the manager has shown
// that it belongs to the root that the token names, else the error is a
// [FingerprintError].
func Join(ctx context.Context, addr string, token join.Token, path string, req, resp any) error {
	in := newLinks()
	defer in.closeAll()
	if err := callOnce(ctx, new(net.Dialer).DialContext, in, addr, joinTLS(token), path, req, resp); err != nil {
		return fmt.Errorf("join %s: %w", addr, err)
	}
	return nil
}

// CallAnonymous calls an anonymous route of a manager without showing the
// node's own certificate: for one that has expired. The manager must prove
// itself as it must to [Call].
func CallAnonymous[Req, Resp any](ctx context.Context, d *Dialer, to wire.Peer, path string, req *Req) (*Resp, error) {
	resp := new(Resp)
	if err := d.callAnonymous(ctx, to, path, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

func (d *Dialer) callAnonymous(ctx context.Context, to wire.Peer, path string, req, resp any) error {
	addr, err := d.locate(to)
	if err != nil {
		return err
	}
	cfg := d.cfg.Identity().clientTLS(protoH2, to.NodeID)
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	return callOnce(ctx, d.cfg.Dial, d.links, addr, cfg, path, req, resp)
}

// Rejected tells whether the other side refused the handshake, as managers do
// with certificates that have expired or are of no root that they trust.
func Rejected(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "remote error"
}

// callOnce is an anonymous call on a connection of its own.
func callOnce(ctx context.Context, dial dialFunc, in *links, addr string, cfg *tls.Config, path string, req, resp any) error {
	conn, err := shake(ctx, dial, in, addr, cfg)
	if err != nil {
		return err
	}
	l := linkOf(conn)
	defer l.Close()
	if !in.admit(l, pki.Node{}, nil, false, anonymousLife) {
		return errClosed
	}
	cc, err := speakH2(ctx, conn)
	if err != nil {
		return err
	}
	return exchange(ctx, path, req, resp, func(r *http.Request) (*http.Response, error) {
		if err := address(r, Anonymous.prefix()); err != nil {
			return nil, err
		}
		return roundTrip(cc, r)
	})
}
