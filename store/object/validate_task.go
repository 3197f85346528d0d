package object

import (
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

func taskTemplate(s *swarm.ServiceSpec) error {
	t := &s.TaskTemplate
	switch t.Runtime {
	case "", swarm.RuntimeContainer:
		if t.ContainerSpec == nil {
			return invalid("mismatched Runtime and *Spec fields")
		}
	case swarm.RuntimePlugin:
		return Errorf(errdefs.ErrNotImplemented, "services that run plugins are not implemented")
	default:
		return invalid("unsupported runtime")
	}
	if err := resources(t.Resources); err != nil {
		return err
	}
	if err := restartPolicy(t.RestartPolicy); err != nil {
		return err
	}
	if t.Placement != nil {
		if _, err := ParseConstraints(t.Placement.Constraints); err != nil {
			return err
		}
	}
	return containerSpec(t.ContainerSpec)
}

func resources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	amounts := func(nanoCPUs, memory int64) error {
		if nanoCPUs != 0 && nanoCPUs < 1e6 {
			return invalid("invalid cpu value %g: Must be at least %g", float64(nanoCPUs)/1e9, 0.001)
		}
		if memory != 0 && memory < 4<<20 {
			return invalid("invalid memory value %d: Must be at least 4MiB", memory)
		}
		return nil
	}
	if l := r.Limits; l != nil {
		if err := amounts(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
	}
	if v := r.Reservations; v != nil {
		if err := amounts(v.NanoCPUs, v.MemoryBytes); err != nil {
			return err
		}
		for _, g := range v.GenericResources {
			if g.DiscreteResourceSpec == nil || g.NamedResourceSpec != nil || g.DiscreteResourceSpec.Kind == "" || g.DiscreteResourceSpec.Value <= 0 {
				return invalid("generic resources must be reserved as a kind and a count above 0")
			}
		}
	}
	if r.SwapBytes != nil && (r.Limits == nil || r.Limits.MemoryBytes == 0) {
		return invalid("memory swap provided, but no memory-limit was set")
	}
	return nil
}

func restartPolicy(p *swarm.RestartPolicy) error {
	if p == nil {
		return nil
	}
	switch p.Condition {
	case "", swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny:
	default:
		return invalid("invalid RestartCondition: %q", p.Condition)
	}
	if p.Delay != nil && *p.Delay < 0 {
		return invalid("TaskSpec: restart-delay cannot be negative")
	}
	if p.Window != nil && *p.Window < 0 {
		return invalid("TaskSpec: restart-window cannot be negative")
	}
	return nil
}

func containerSpec(c *swarm.ContainerSpec) error {
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	if err := mounts(c.Mounts); err != nil {
		return err
	}
	if err := healthConfig(c.Healthcheck); err != nil {
		return err
	}
	if err := secretReferences(c.Secrets); err != nil {
		return err
	}
	return configReferences(c.Configs)
}

func mounts(ms []mount.Mount) error {
	targets := map[string]bool{}
	for _, m := range ms {
		switch m.Type {
		case mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster, mount.TypeImage:
		default:
			return invalid("invalid MountType: %q", m.Type)
		}
		if b := m.BindOptions; b != nil && b.Propagation != "" && !slices.Contains(mount.Propagations, b.Propagation) {
			return invalid("invalid MountPropagation: %q", b.Propagation)
		}
		if targets[m.Target] {
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		targets[m.Target] = true
	}
	return nil
}

func healthConfig(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, f := range [...]struct {
		name string
		d    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if f.d != 0 && f.d < container.MinimumDuration {
			return invalid("ContainerSpec: %s in HealthConfig cannot be less than %s", f.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	return nil
}

func secretReferences(refs []*swarm.SecretReference) error {
	targets := map[string]string{}
	for _, r := range refs {
		switch {
		case r == nil || r.SecretID == "" || r.SecretName == "":
			return invalid("malformed secret reference")
		case r.File == nil:
			return invalid("malformed secret reference, no target provided")
		case r.File.Name == "":
			return invalid("malformed file secret reference, invalid target file name provided")
		}
		if other, ok := targets[r.File.Name]; ok {
			return invalid("secret references '%s' and '%s' have a conflicting target: '%s'", other, r.SecretName, r.File.Name)
		}
		targets[r.File.Name] = r.SecretName
	}
	return nil
}

func configReferences(refs []*swarm.ConfigReference) error {
	targets := map[string]string{}
	for _, r := range refs {
		switch {
		case r == nil || r.ConfigID == "" || r.ConfigName == "":
			return invalid("malformed config reference")
		case (r.File == nil) == (r.Runtime == nil):
			return invalid("either File or Runtime should be set")
		case r.File == nil:
			continue
		case r.File.Name == "":
			return invalid("malformed file config reference, invalid target file name provided")
		}
		if other, ok := targets[r.File.Name]; ok {
			return invalid("config references '%s' and '%s' have a conflicting target: '%s'", other, r.ConfigName, r.File.Name)
		}
		targets[r.File.Name] = r.ConfigName
	}
	return nil
}
