package control

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"skep/pki"
	"skep/pki/join"
)

// Join calls an anonymous route of the manager at addr, for a machine that
// knows the swarm by a token only. Nothing is sent before the manager has shown
// that it belongs to the root that the token names, else the error is a
// [FingerprintError]. The connection is used once.
func Join(ctx context.Context, addr string, token join.Token, path string, req, resp any) error {
	in := newLinks()
	defer in.closeAll()
	conn, err := shake(ctx, new(net.Dialer).DialContext, in, addr, joinTLS(token))
	if err != nil {
		return fmt.Errorf("join %s: %w", addr, err)
	}
	if !in.admit(linkOf(conn), pki.Node{}, nil, false, anonymousLife) {
		return fmt.Errorf("join %s: %w", addr, errClosed)
	}
	cc, err := speakH2(ctx, conn)
	if err != nil {
		return fmt.Errorf("join %s: %w", addr, err)
	}
	return exchange(ctx, path, req, resp, func(r *http.Request) (*http.Response, error) {
		if err := address(r, Anonymous.prefix()); err != nil {
			return nil, err
		}
		return roundTrip(cc, r)
	})
}
