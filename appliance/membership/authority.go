package membership

import (
	"context"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
)

// ReachCA tells whether one of the external authorities that cfg names for root
// can be reached, as [ca.Reach] does.
func (m *Membership) ReachCA(ctx context.Context, cfg swarm.CAConfig, root, current []byte, which string) error {
	s := m.stay.Load()
	if s == nil {
		return nil
	}
	return ca.Reach(ctx, &cfg, root, current, which, s.certificate)
}
