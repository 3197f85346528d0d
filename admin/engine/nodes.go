package engine

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) nodeRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /nodes", a.listNodes),
		a.read("GET /nodes/{id}", a.inspectNode),
		a.write(admin.Operator, "POST /nodes/{id}/update", a.updateNode),
		a.write(admin.Operator, "DELETE /nodes/{id}", a.removeNode),
	}
}

// showNode is a node as the API shows it. One that is to be a manager is none
// for clients before it is a replica.
func showNode(n *object.Node) swarm.Node {
	shown := n.Node
	shown.Spec.Labels = labels(shown.Spec.Labels)
	if !replicated(n) {
		shown.ManagerStatus = nil
	}
	return shown
}

// replicated reports whether a node is a replica: then something is known of how
// it is reached.
func replicated(n *object.Node) bool {
	return n.ManagerStatus != nil && n.ManagerStatus.Reachability != ""
}

func (a *API) listNodes(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	for _, v := range f.Values("role") {
		if v != "manager" && v != "worker" {
			return invalid("Invalid role filter: '%s'", v)
		}
	}
	for _, v := range f.Values("membership") {
		if v != "accepted" && v != "pending" {
			return invalid("Invalid membership filter: '%s'", v)
		}
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shown(s.Nodes.All(), func(n *object.Node) bool {
		return f.Prefix("id", n.ID) && f.Prefix("name", n.Description.Hostname, n.Spec.Name) &&
			f.Exact("role", string(n.Spec.Role)) &&
			// Every node that is in the store was accepted.
			f.Exact("membership", "accepted") &&
			f.Labels("label", n.Description.Engine.Labels) && f.Labels("node.label", n.Spec.Labels)
	}, showNode))
}

func (a *API) inspectNode(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	n, err := s.Nodes.Find(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showNode(n))
}

func (a *API) updateNode(_ http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.NodeSpec](r)
	if err != nil {
		return err
	}
	version, err := objectVersion(r, "node")
	if err != nil {
		return err
	}
	if err := object.ValidateNode(spec); err != nil {
		return err
	}
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		old, err := s.Nodes.Find(r.PathValue("id"))
		if err != nil {
			return err
		}
		if version != old.Version {
			return store.ErrSequence
		}
		if old.Spec.Role == swarm.NodeRoleManager && spec.Role == swarm.NodeRoleWorker {
			if err := checkDemotion(s, old); err != nil {
				return err
			}
			tx.Depart()
		}
		n := clone(old)
		n.Spec = spec
		tx.Update(n)
		return nil
	})
}

// checkDemotion refuses what would leave the swarm without a manager, or without
// most of its managers: the roles loop would wait with it, and nobody know why.
func checkDemotion(s *store.Snapshot, n *object.Node) error {
	if countManagers(s) == 1 {
		return object.Errorf(errdefs.ErrFailedPrecondition, "attempting to demote the last manager of the swarm")
	}
	if !replicated(n) {
		return nil
	}
	left, reachable := 0, 0
	for o := range s.Nodes.All() {
		if o.ID == n.ID || !replicated(o) {
			continue
		}
		left++
		if o.ManagerStatus.Reachability == swarm.ReachabilityReachable {
			reachable++
		}
	}
	if reachable < left/2+1 {
		return object.Errorf(errdefs.ErrFailedPrecondition, "can't remove member from the raft: this would result in a loss of quorum")
	}
	return nil
}

func (a *API) removeNode(_ http.ResponseWriter, r *http.Request) error {
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		n, err := s.Nodes.Find(r.PathValue("id"))
		if err != nil {
			return err
		}
		switch {
		case n.Spec.Role == swarm.NodeRoleManager || n.ManagerStatus != nil:
			return object.Errorf(errdefs.ErrFailedPrecondition,
				"node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		case n.Status.State == swarm.NodeStateReady && !flag(r, "force"):
			return object.Errorf(errdefs.ErrFailedPrecondition, "node %s is not down and can't be removed", n.ID)
		}
		tx.Delete(n)
		tx.Depart()
		return nil
	})
}
