package membership_test

import (
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// With two managers one votes and one stands by: the one that votes is demoted
// only after the other can do without it.
func TestSwarm_LeaderOfTwoIsDemoted(t *testing.T) {
	w := &world{T: t}
	m1, m2 := w.add("m1"), w.add("m2")
	m1.init()
	m2.join(m1.tokens().Manager, m1)
	w.until("formed", m2.sees("m1 manager ready reachable leader", "m2 manager ready reachable"))
	m2.edit("m1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleWorker })
	w.until("the other leads alone", m2.sees("m1 worker ready", "m2 manager ready reachable leader"))
	w.until("the first is a worker", func() bool {
		_, err := m1.Replica()
		return err != nil && !m1.Info(t.Context()).ControlAvailable
	})
	m2.edit("m1", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleManager })
	w.until("it is a manager again", func() bool { return slices.Contains(m1.seen(), "m1 manager ready reachable") })
}
