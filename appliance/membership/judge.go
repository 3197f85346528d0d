package membership

import (
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/store"
)

// judge is what a certificate that verifies is worth, by what this replica
// knows. raft asks for a connection of replicas only.
//
// A certificate's generation is the store's index when it was issued, so it
// tells whether this replica knows more than whoever issued it, or less. One
// that knows less lets a manager teach it, and nothing else.
func judge(s *store.Snapshot, n pki.Node, raft bool) control.Class {
	newer := s.Cluster() == nil || n.Generation > s.Index
	node, known := s.Nodes.Get(n.ID)
	switch {
	case raft && newer && n.Role == pki.Manager:
		return control.Manager
	case !known && !newer:
		return control.Expelled
	case !known, n.Generation < node.MinGeneration:
		return control.Nobody // not heard of yet, or to ask for another certificate
	case n.Role == pki.Manager && node.Spec.Role == swarm.NodeRoleManager:
		return control.Manager
	case raft && n.Role == pki.Manager && ca.Role(node) == swarm.NodeRoleManager:
		// Demoted, and still counted among the replicas: without it there might
		// be no majority to take it out. It is no manager for anything else.
		return control.Manager
	case raft:
		return control.Nobody
	}
	return control.Worker
}
