package appliance

import (
	"context"
	"crypto/tls"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
)

// ReachCA implements [engine.Swarm].
func (m *membership) ReachCA(ctx context.Context, cfg swarm.CAConfig, root, current []byte, which string) error {
	return ca.Reach(ctx, &cfg, root, current, which, m.certificate)
}

// certificate is the node's own.
func (m *membership) certificate() (tls.Certificate, error) {
	cert, _, err := m.keys.State().TLS()
	return cert, err
}
