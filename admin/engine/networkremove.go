package engine

import (
	"net/http"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

func (a *API) networkRemove(w http.ResponseWriter, r *http.Request) error {
	n, _, err := a.findNetwork(r.Context(), r.PathValue("id"), "")
	switch {
	case err != nil:
		return err
	case n.swarm == nil && object.Predefined(n.Name):
		return object.Errorf(errdefs.ErrPermissionDenied, "%s is a pre-defined network and cannot be removed", n.Name)
	case n.swarm == nil:
		return unbuilt("removing the node's own networks is")
	}
	err = a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		o, ok := s.Networks.Get(n.ID)
		if !ok || o.PendingDelete {
			return object.Errorf(errdefs.ErrNotFound, "network %s not found", r.PathValue("id"))
		}
		return removeNetwork(s, tx, o)
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// removeNetwork removes a network that nobody uses. While tasks that end are
// still on it, it is only marked, and goes when they are gone.
func removeNetwork(s *store.Snapshot, tx *store.Tx, n *object.Network) error {
	if err := checkUnused(s, n); err != nil {
		return err
	}
	tx.Unused(n)
	if object.OnNetwork(s.Tasks.All(), n.ID) {
		n = clone(n)
		n.PendingDelete = true
		tx.Update(n)
		return nil
	}
	tx.Delete(n)
	return nil
}

// checkUnused refuses to remove a network that something uses.
func checkUnused(s *store.Snapshot, n *object.Network) error {
	for o := range s.Services.All() {
		if o.PendingDelete {
			continue
		}
		if n.Spec.Ingress && needsIngress(o.Spec) {
			return object.Errorf(errdefs.ErrFailedPrecondition, "ingress network cannot be removed because service %s depends on it", o.ID)
		}
		if asksFor(o.Spec.TaskTemplate, n.ID) || updating(o) && asksFor(o.PreviousSpec.TaskTemplate, n.ID) {
			return object.Errorf(errdefs.ErrFailedPrecondition, "network %s is in use by service %s", n.ID, o.ID)
		}
	}
	for t := range s.Tasks.All() {
		if _, on := placeOn(t.Networks, n.ID); on && !ending(s, t) {
			return object.Errorf(errdefs.ErrFailedPrecondition, "network %s is in use by task %s", n.ID, t.ID)
		}
	}
	for g := range s.Guests.All() {
		if g.Network.ID == n.ID {
			return object.Errorf(errdefs.ErrFailedPrecondition, "network %s is in use by container %s", n.ID, g.ContainerID)
		}
	}
	return nil
}

// ending says whether a task is over or is to end. Those of a service that was
// removed are, before anybody has told them.
func ending(s *store.Snapshot, t *object.Task) bool {
	o, ok := s.Services.Get(t.ServiceID)
	return !ok || o.PendingDelete || object.Over(t) || object.Rank(t.DesiredState) > object.Rank(swarm.TaskStateRunning)
}

// needsIngress says whether a service publishes ports on all nodes.
func needsIngress(spec swarm.ServiceSpec) bool {
	return spec.EndpointSpec != nil && slices.ContainsFunc(spec.EndpointSpec.Ports, func(p swarm.PortConfig) bool {
		return modeOfPort(p) == swarm.PortConfigPublishModeIngress
	})
}

func asksFor(t swarm.TaskSpec, id string) bool {
	return slices.ContainsFunc(t.Networks, func(c swarm.NetworkAttachmentConfig) bool { return c.Target == id })
}

// updating says whether a service may yet go back to its previous spec by itself.
func updating(o *object.Service) bool {
	return o.PreviousSpec != nil && o.UpdateStatus != nil && o.UpdateStatus.State == swarm.UpdateStateUpdating
}

// usedNetworks are the IDs of the swarm's networks that something uses.
func usedNetworks(s *store.Snapshot) map[string]bool {
	used := map[string]bool{}
	for n := range s.Networks.All() {
		used[n.ID] = n.Spec.Ingress
	}
	for o := range s.Services.All() {
		for _, c := range o.Spec.TaskTemplate.Networks {
			used[c.Target] = true
		}
	}
	for t := range s.Tasks.All() {
		for _, at := range t.Networks {
			used[at.ID] = used[at.ID] || !object.Over(t)
		}
	}
	for g := range s.Guests.All() {
		used[g.Network.ID] = true
	}
	return used
}

// networkPrune removes the swarm's networks that nothing uses, if this node is
// a manager. The node's own stay.
func (a *API) networkPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := untilFilter(f, time.Now())
	if err != nil {
		return err
	}
	var report network.PruneReport
	if !a.Swarm.Info(r.Context()).ControlAvailable {
		return writeJSON(w, http.StatusOK, report)
	}
	err = a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		report = network.PruneReport{}
		for n := range s.Networks.All() {
			if n.Spec.Ingress || n.PendingDelete || !labelled(f, n.Spec.Labels) || !until.IsZero() && n.CreatedAt.After(until) {
				continue
			}
			if removeNetwork(s, tx, n) != nil {
				continue // it is in use
			}
			report.NetworksDeleted = append(report.NetworksDeleted, n.Spec.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}
