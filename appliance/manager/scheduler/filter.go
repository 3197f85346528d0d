package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// filter is one reason why a node is not fit, in the order of the checks.
type filter int

const (
	notReady filter = iota
	noResources
	noPlugin
	noConstraint
	noPlatform
	portInUse
	tooManyReplicas
	noVolumes
	fit // no reason
)

// check is the first reason why the node does not fit a task, or fit.
func (d *demand) check(n *member, g group) filter {
	switch {
	case n.node.Status.State != swarm.NodeStateReady || n.node.Spec.Availability != swarm.NodeAvailabilityActive:
		return notReady
	case !n.free.Fits(&d.reserved):
		return noResources
	case len(d.plugins) > 0 && !hasPlugins(n.node, d.plugins):
		return noPlugin
	case d.invalid || !object.Match(d.constraints, n.node):
		return noConstraint
	case len(d.platforms) > 0 && !slices.ContainsFunc(d.platforms, func(p swarm.Platform) bool {
		return object.PlatformMatches(p, n.node.Description.Platform)
	}):
		return noPlatform
	}
	if len(d.ports) > 0 || d.maxReplicas > 0 || d.cluster {
		return d.checkMore(n, g)
	}
	return fit
}

func (d *demand) checkMore(n *member, g group) filter {
	switch {
	case slices.ContainsFunc(d.ports, func(p hostPort) bool { return n.ports[p] > 0 }):
		return portInUse
	case d.maxReplicas > 0 && n.active[g.service] >= d.maxReplicas:
		return tooManyReplicas
	case d.cluster:
		return noVolumes
	default:
		return fit
	}
}

// changes reports whether placing a task may make its node unfit for the next.
func (d *demand) changes() bool {
	return d.reserved.CPU > 0 || d.reserved.Memory > 0 || len(d.reserved.Generic) > 0 || len(d.ports) > 0 || d.maxReplicas > 0
}

// tally counts why nodes do not fit.
type tally [fit]int

// explain is the reason for the user, the most frequent cause first.
func (t *tally) explain() string {
	var causes []filter
	for f, n := range t {
		if n > 0 {
			causes = append(causes, filter(f))
		}
	}
	if len(causes) == 0 {
		return "no suitable node"
	}
	slices.SortStableFunc(causes, func(a, b filter) int { return cmp.Compare(t[b], t[a]) })
	var parts []string
	for _, f := range causes {
		parts = append(parts, f.explain(t[f]))
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

func (f filter) explain(n int) string {
	nodes := fmt.Sprintf("%d nodes", n)
	if n == 1 {
		nodes = "1 node"
	}
	switch f {
	case notReady:
		return nodes + " not available for new tasks"
	case noResources:
		return "insufficient resources on " + nodes
	case noPlugin:
		return "missing plugin on " + nodes
	case noConstraint:
		return "scheduling constraints not satisfied on " + nodes
	case noPlatform:
		return "unsupported platform on " + nodes
	case portInUse:
		return "host-mode port already in use on " + nodes
	case tooManyReplicas:
		return "max replicas per node limit exceed"
	case noVolumes:
		return "cannot fulfill requested CSI volume mounts on " + nodes
	case fit:
	}
	return ""
}
