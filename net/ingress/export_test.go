// SPDX-License-Identifier: Apache-2.0

package ingress

import "maps"

// Fallbacks says, by the ID of the service, why the addresses of its clients
// are not kept although they should be.
func (m *Mesh) Fallbacks() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.told.fallbacks)
}
