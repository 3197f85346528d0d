package cli

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// maxReasons is how many different reasons are told of one service.
const maxReasons = 3

// problems is what an operator would want to look into, the swarm first.
func (v view) problems() []string {
	out := v.swarmProblems()
	for _, n := range v.nodes {
		name := n.Description.Hostname
		if n.Status.State != swarm.NodeStateReady {
			out = append(out, withReason(fmt.Sprintf("node %s is %s", name, n.Status.State), n.Status.Message))
		}
		if m := n.ManagerStatus; m != nil && m.Reachability != swarm.ReachabilityReachable {
			out = append(out, fmt.Sprintf("manager %s is %s", name, m.Reachability))
		}
	}
	for _, s := range v.services {
		out = append(out, v.serviceProblems(s)...)
	}
	return append(append(out, v.networkProblems()...), v.info.Warnings...)
}

// networkProblems are those of this node: the others' are told by network check.
func (v view) networkProblems() []string {
	if v.network == nil {
		return nil
	}
	var out []string
	if v.network.Fault != "" {
		out = append(out, "the swarm's networks are not as they should be on this node: "+printable(v.network.Fault))
	}
	for _, m := range v.network.Missing {
		out = append(out, printable(fmt.Sprintf("network %s is missing on this node: %s", m.Name, m.Reason)))
	}
	for _, c := range v.network.Conflicts {
		out = append(out, fmt.Sprintf("service %s: port %d/%s on this node: %s", v.serviceName(c.Service), c.Port, c.Protocol, c.Reason))
	}
	return out
}

func (v view) serviceName(id string) string {
	for _, s := range v.services {
		if s.ID == id {
			return s.Spec.Name
		}
	}
	return id
}

// notes are what users may not expect and nothing is wrong with.
func (v view) notes() []string {
	var out []string
	for _, s := range v.services {
		source, unserved := object.PublishedAs(s.Spec.Labels, s.Endpoint.Ports)
		if source != "" {
			out = append(out, fmt.Sprintf("service %s does not see its clients' addresses: %s", s.Spec.Name, source))
		}
		if unserved != "" {
			out = append(out, fmt.Sprintf("service %s is not served on %s", s.Spec.Name, unserved))
		}
	}
	if h := v.network; h != nil {
		for _, l := range h.Lacks {
			out = append(out, "on this node, "+printable(l))
		}
		if h.Balancer != "" && h.BalancerReason != "" {
			out = append(out, printable(fmt.Sprintf("on this node, %s balances and not ipvs: %s", h.Balancer, h.BalancerReason)))
		}
	}
	return out
}

func (v view) swarmProblems() []string {
	s := v.info.Swarm
	var out []string
	switch s.LocalNodeState {
	case swarm.LocalNodeStateActive:
	case swarm.LocalNodeStateInactive, "":
		out = append(out, "this node is in no swarm yet: skep swarm init, or skep swarm join")
	case swarm.LocalNodeStateLocked:
		out = append(out, "this node is locked: skep swarm unlock")
	case swarm.LocalNodeStatePending, swarm.LocalNodeStateError:
		out = append(out, fmt.Sprintf("the swarm is in state %s", s.LocalNodeState))
	}
	if s.Error != "" {
		out = append(out, s.Error)
	}
	if s.ControlAvailable && s.Managers > 0 && s.Managers%2 == 0 {
		out = append(out, fmt.Sprintf("%d managers survive no more failures than %d", s.Managers, s.Managers-1))
	}
	return out
}

func withReason(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

func (v view) serviceProblems(s swarm.Service) []string {
	var out []string
	if u := s.UpdateStatus; u != nil && (u.State == swarm.UpdateStatePaused || u.State == swarm.UpdateStateRollbackPaused) {
		out = append(out, withReason(fmt.Sprintf("service %s: its update is paused", s.Spec.Name), u.Message))
	}
	st := s.ServiceStatus
	if st == nil || st.RunningTasks+st.CompletedTasks >= st.DesiredTasks {
		return out
	}
	out = append(out, fmt.Sprintf("service %s: %d of %d tasks run", s.Spec.Name, st.RunningTasks, st.DesiredTasks))
	for _, r := range v.reasons(s.ID) {
		out = append(out, "  "+r)
	}
	return out
}

// reasons are why tasks of a service do not run, the newest first, each once.
func (v view) reasons(service string) []string {
	tasks := slices.DeleteFunc(slices.Clone(v.tasks), func(t swarm.Task) bool {
		return t.ServiceID != service || t.Status.State == swarm.TaskStateRunning || reason(t) == ""
	})
	slices.SortFunc(tasks, func(a, b swarm.Task) int {
		return cmp.Or(b.Status.Timestamp.Compare(a.Status.Timestamp), cmp.Compare(a.ID, b.ID))
	})
	var out []string
	for _, t := range tasks {
		r := fmt.Sprintf("%s: %s", t.Status.State, reason(t))
		if !slices.Contains(out, r) && len(out) < maxReasons {
			out = append(out, r)
		}
	}
	return out
}

// reason is why a task is where it is: its error, or what a task that waits
// waits for.
func reason(t swarm.Task) string {
	if t.Status.Err != "" {
		return t.Status.Err
	}
	if t.DesiredState == swarm.TaskStateRunning {
		return t.Status.Message
	}
	return ""
}
