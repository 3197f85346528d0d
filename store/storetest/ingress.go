package storetest

import "skep/store/object"

// Ingress is a network of the routing mesh as a swarm is founded with it, to
// which nothing was allocated yet. Services that publish ports need it.
func Ingress() *object.Network {
	n := &object.Network{}
	n.ID, n.Spec.Name = "ingress", "ingress"
	n.Spec.Ingress, n.Spec.Scope = true, "swarm"
	return n
}
