package allocator

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// newTasks gives a service's new tasks their addresses and lets them pass on to
// the scheduler. why is what the service itself lacks. A task that has to stay
// says why; then newTasks reports true.
func (r *round) newTasks(svc *object.Service, why string) (waits bool) {
	var spec *swarm.TaskSpec
	var of swarm.Version
	for _, t := range r.tasksOf(svc) {
		if spec == nil || of != t.SpecVersion {
			spec, of = r.taskSpec(svc, t), t.SpecVersion
		}
		var networks []object.TaskNetwork
		reason := why
		if reason == "" {
			networks, reason = r.taskNetworks(spec, svc.Endpoint.Ports)
		}
		waits = waits || reason != ""
		if reason != "" && t.Status.Err == reason {
			continue
		}
		t = t.Clone().(*object.Task)
		t.Status.Timestamp, t.Status.Err = r.now, reason
		if reason == "" {
			t.Status.State, t.Status.Message = swarm.TaskStatePending, "pending task scheduling"
			t.Ports, t.Networks = slices.Clone(svc.Endpoint.Ports), networks
		}
		r.changes.Update = append(r.changes.Update, t)
	}
	return waits
}

// tasksOf are a service's new tasks by slot: so their addresses are in an order
// that people can follow.
func (r *round) tasksOf(svc *object.Service) (tasks []*object.Task) {
	for t := range r.snap.Tasks.By(store.ByService, svc.ID) {
		if t.Status.State == swarm.TaskStateNew && !object.Over(t) {
			tasks = append(tasks, t)
		}
	}
	slices.SortStableFunc(tasks, func(a, b *object.Task) int { return cmp.Compare(a.Slot, b.Slot) })
	return tasks
}

// taskSpec is what a task runs.
func (r *round) taskSpec(svc *object.Service, t *object.Task) *swarm.TaskSpec {
	if rev := r.snap.Revision(t.ServiceID, t.SpecVersion); rev != nil {
		return &rev.Spec
	}
	return &svc.Spec.TaskTemplate
}

// taskNetworks are a new task's places on the networks of the swarm, or why it
// cannot have them all; then it gets none.
func (r *round) taskNetworks(spec *swarm.TaskSpec, ports []swarm.PortConfig) (out []object.TaskNetwork, why string) {
	ids, why := r.networksOf(spec.Networks, ports)
	if len(ids) > 1 && publishes(ports) { // the mesh's is a task's last
		ids = append(ids[1:], ids[0])
	}
	mark := len(r.ledger.given)
	for _, id := range ids {
		var s *site
		if s, why = r.site(id); why != "" {
			break
		}
		n := object.TaskNetwork{ID: id}
		if n.Addresses, why = r.takeAll(s); why != "" {
			break
		}
		for _, t := range spec.Networks {
			if t.Target == id {
				n.Aliases = append(n.Aliases, t.Aliases...)
			}
		}
		out = append(out, n)
	}
	if why != "" {
		r.ledger.undo(mark)
		return nil, why
	}
	return out, ""
}
