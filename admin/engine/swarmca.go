package engine

import (
	"context"
	"net/url"
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/pki"
	"skep/pki/join"
	"skep/store/object"
)

// changeCA takes what a new spec asks of the certificate authority into c,
// which still has the former spec, or refuses it. The leader carries it out.
func (a *API) changeCA(ctx context.Context, c *object.Cluster, now *swarm.CAConfig) error {
	if err := checkCA(now); err != nil {
		return err
	}
	old := &c.Spec.CAConfig
	if now.SigningCACert == "" {
		// A root that was given and not yet taken up is not in the spec that
		// clients see.
		now.SigningCACert, now.SigningCAKey = old.SigningCACert, old.SigningCAKey
	}
	if now.SigningCACert != old.SigningCACert {
		if err := a.checkRoot(ctx, c, now); err != nil {
			return err
		}
	}
	changes := now.SigningCACert != "" || now.ForceRotate != c.RootCA.Forced
	if len(c.RootCA.Key) == 0 && (changes || !reflect.DeepEqual(now.ExternalCAs, old.ExternalCAs)) {
		return a.Swarm.ReachCA(ctx, *now, c.RootCA.Cert, c.RootCA.Cert, "current")
	}
	return nil
}

// checkRoot refuses roots that the swarm cannot have.
func (a *API) checkRoot(ctx context.Context, c *object.Cluster, now *swarm.CAConfig) error {
	current, err := pki.ParseRoot(c.RootCA.Cert, nil)
	if err != nil {
		return err
	}
	cert, err := pki.CheckSuccessor([]byte(now.SigningCACert), current.Cert, time.Now())
	if err != nil {
		return invalid("%w", err)
	}
	if now.SigningCAKey != "" {
		if _, err := pki.ParseRoot([]byte(now.SigningCACert), []byte(now.SigningCAKey)); err != nil {
			return invalid("%w", err)
		}
		return nil
	}
	if len(c.RootCA.Key) == 0 && !cert.Equal(current.Cert) {
		return invalid("rotating from one external CA to a different external CA is not supported")
	}
	return a.Swarm.ReachCA(ctx, *now, []byte(now.SigningCACert), c.RootCA.Cert, "desired")
}

// checkCA refuses what no swarm can be asked for.
func checkCA(now *swarm.CAConfig) error {
	if now.NodeCertExpiry != 0 {
		if err := pki.CheckExpiry(now.NodeCertExpiry); err != nil {
			return invalid("%w", err)
		}
	}
	if now.SigningCAKey != "" && now.SigningCACert == "" {
		return invalid("if a signing CA key is provided, the signing CA cert must also be provided")
	}
	for _, e := range now.ExternalCAs {
		if e == nil || e.Protocol != swarm.ExternalCAProtocolCFSSL {
			return invalid("unrecognized external CA protocol: only %s is known", swarm.ExternalCAProtocolCFSSL)
		}
		if u, err := url.Parse(e.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			return invalid("external CA URL %q is not that of an HTTPS server", e.URL)
		}
	}
	return nil
}

// checkFirstCA is checkCA for a swarm that does not exist yet.
func checkFirstCA(now *swarm.CAConfig) error {
	if now.SigningCACert != "" {
		return unbuilt("beginning a swarm with a given root certificate, instead of changing to it,")
	}
	return checkCA(now)
}

// rotateTokens makes new join tokens; the old ones let nobody in any more.
func rotateTokens(c *object.Cluster, worker, manager bool) error {
	if !worker && !manager {
		return nil
	}
	roots, err := pki.ParseChain(c.RootCA.Cert)
	if err != nil {
		return err
	}
	w, m := join.Pair(roots[0].Raw)
	if worker {
		c.JoinTokens.Worker = w
	}
	if manager {
		c.JoinTokens.Manager = m
	}
	return nil
}
