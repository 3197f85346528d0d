package roles

import (
	"reflect"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
	"skep/store/replica"
)

// Statuses are the nodes whose manager status is to be another.
func Statuses(v View) []*object.Node {
	members := map[string]replica.Server{}
	for _, s := range v.Servers {
		if v.leaving(s) != anew {
			members[s.NodeID] = s
		}
	}
	var out []*object.Node
	for n := range v.Snapshot.Nodes.All() {
		if n.Spec.Role != swarm.NodeRoleManager && n.ManagerStatus == nil && n.RaftID == "" {
			continue // nothing to be said of a worker
		}
		next := n.Clone().(*object.Node)
		if s, ok := members[n.ID]; ok {
			v.describe(next, s)
		} else {
			v.outside(next)
		}
		if !reflect.DeepEqual(n, next) {
			out = append(out, next)
		}
	}
	return out
}

// describe is what is said of a replica.
func (v View) describe(n *object.Node, s replica.Server) {
	if n.ManagerStatus == nil {
		n.ManagerStatus = &swarm.ManagerStatus{}
	}
	n.ManagerStatus.Leader = n.ID == v.Self
	n.ManagerStatus.Reachability = swarm.ReachabilityReachable
	if v.silence(s) > silent {
		n.ManagerStatus.Reachability = swarm.ReachabilityUnreachable
	}
}

// outside is what is said of a node that is no replica. One that is to become
// one keeps its address. One that was demoted is done with being a manager; once
// it shows its new certificate, the old ones are worth nothing.
func (v View) outside(n *object.Node) {
	if n.Spec.Role == swarm.NodeRoleManager {
		if n.ManagerStatus != nil {
			n.ManagerStatus.Leader, n.ManagerStatus.Reachability = false, ""
		}
		return
	}
	n.ManagerStatus = nil
	if g, ok := v.Generation(n.ID); ok && n.RaftID != "" && n.CertRole == swarm.NodeRoleWorker && g >= n.Generation {
		n.RaftID, n.MinGeneration = "", max(n.MinGeneration, n.Generation)
	}
}
