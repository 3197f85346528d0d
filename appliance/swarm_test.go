package appliance_test

import (
	"testing"

	"skep/appliance/nodetest"
)

// TestSwarmScripts drives real nodes, each on a machine of its own, by the real
// docker command line.
func TestSwarmScripts(t *testing.T) {
	nodetest.SwarmScripts(t, "testdata/swarm", nodetest.Binary(t), dockerCLI(t))
}
