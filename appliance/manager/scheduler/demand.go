package scheduler

import (
	"slices"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// Resources is what a node has or a task reserves.
type Resources struct {
	CPU, Memory int64
	// Generic counts the generic resources of each kind; a named one counts 1.
	Generic map[string]int64
}

// Have is what a node's description or a reservation says.
func Have(r *swarm.Resources) Resources {
	if r == nil {
		return Resources{}
	}
	out := Resources{CPU: r.NanoCPUs, Memory: r.MemoryBytes}
	for _, g := range r.GenericResources {
		kind, n := "", int64(1)
		switch {
		case g.DiscreteResourceSpec != nil:
			kind, n = g.DiscreteResourceSpec.Kind, g.DiscreteResourceSpec.Value
		case g.NamedResourceSpec != nil:
			kind = g.NamedResourceSpec.Kind
		}
		if out.Generic == nil {
			out.Generic = map[string]int64{}
		}
		out.Generic[kind] += n
	}
	return out
}

// Reserved is what a task of this spec reserves on its node.
func Reserved(s *swarm.TaskSpec) Resources {
	if s.Resources == nil {
		return Resources{}
	}
	return Have(s.Resources.Reservations)
}

// Fits reports whether want is there.
func (r *Resources) Fits(want *Resources) bool {
	// What is not asked for is not compared: a node may be overcommitted.
	if (want.CPU > 0 && want.CPU > r.CPU) || (want.Memory > 0 && want.Memory > r.Memory) {
		return false
	}
	for kind, n := range want.Generic {
		if n > r.Generic[kind] {
			return false
		}
	}
	return true
}

// Take subtracts n times want.
func (r *Resources) Take(want *Resources, n int64) {
	r.CPU -= n * want.CPU
	r.Memory -= n * want.Memory
	for kind, v := range want.Generic {
		if r.Generic == nil {
			r.Generic = map[string]int64{}
		}
		r.Generic[kind] -= n * v
	}
}

// group names tasks that ask for the same: those of one revision.
type group struct {
	service string
	version uint64
}

type hostPort struct {
	protocol network.IPProtocol
	port     uint32
}

// demand is what the tasks of a group ask of a node.
type demand struct {
	reserved    Resources
	ports       []hostPort
	constraints []object.Constraint
	invalid     bool // the constraints cannot be read: no node satisfies them
	platforms   []swarm.Platform
	maxReplicas int
	plugins     []swarm.PluginDescription
	cluster     bool // asks for cluster volumes
	descriptors []string
}

func newDemand(rev *object.Revision) *demand {
	d := &demand{}
	if rev == nil {
		return d
	}
	d.reserved = Reserved(&rev.Spec)
	if p := rev.Spec.Placement; p != nil {
		cs, err := object.ParseConstraints(p.Constraints)
		d.constraints, d.invalid = cs, err != nil
		d.platforms, d.maxReplicas = p.Platforms, int(min(p.MaxReplicas, 1<<30))
		for _, pref := range p.Preferences {
			if pref.Spread != nil {
				d.descriptors = append(d.descriptors, pref.Spread.SpreadDescriptor)
			}
		}
	}
	if e := rev.Endpoint; e != nil {
		for _, p := range e.Ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
				proto := p.Protocol
				if proto == "" {
					proto = network.TCP
				}
				d.ports = append(d.ports, hostPort{proto, p.PublishedPort})
			}
		}
	}
	if l := rev.Spec.LogDriver; l != nil && l.Name != "" && l.Name != "none" {
		d.plugins = append(d.plugins, swarm.PluginDescription{Type: "Log", Name: l.Name})
	}
	if c := rev.Spec.ContainerSpec; c != nil {
		for _, m := range c.Mounts {
			d.cluster = d.cluster || m.Type == mount.TypeCluster
			if m.Type == mount.TypeVolume && m.VolumeOptions != nil && m.VolumeOptions.DriverConfig != nil {
				if name := m.VolumeOptions.DriverConfig.Name; name != "" && name != "local" {
					d.plugins = append(d.plugins, swarm.PluginDescription{Type: "Volume", Name: name})
				}
			}
		}
	}
	return d
}

// hasPlugins reports whether a node has the plugins that are asked for. A node
// that reports no log drivers at all is taken to have all.
func hasPlugins(n *object.Node, want []swarm.PluginDescription) bool {
	have := n.Description.Engine.Plugins
	for _, w := range want {
		if w.Type == "Log" && !slices.ContainsFunc(have, func(p swarm.PluginDescription) bool { return p.Type == "Log" }) {
			continue
		}
		if !slices.ContainsFunc(have, func(p swarm.PluginDescription) bool {
			return p.Type == w.Type && (p.Name == w.Name || p.Name == w.Name+":latest")
		}) {
			return false
		}
	}
	return true
}
