package object

// RootDue reports whether the swarm's spec asks for a change of root that has
// not begun.
func (c *Cluster) RootDue() bool {
	return c.Spec.CAConfig.ForceRotate != c.RootCA.Forced || c.Spec.CAConfig.SigningCACert != ""
}
