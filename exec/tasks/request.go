package tasks

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// labels that tell whose container it is; the docker CLI and other clients
// find a task's container by them.
const (
	labelTask      = "com.docker.swarm.task"
	labelTaskID    = "com.docker.swarm.task.id"
	labelTaskName  = "com.docker.swarm.task.name"
	labelNodeID    = "com.docker.swarm.node.id"
	labelServiceID = "com.docker.swarm.service.id"
	labelService   = "com.docker.swarm.service.name"
)

// request is the container that a task asks for, but for its files.
func request(a *object.Assignment) (container.CreateRequest, error) {
	spec := a.Revision.Spec.ContainerSpec
	if spec == nil {
		return container.CreateRequest{}, object.Errorf(errdefs.ErrInvalidArgument, "task %s has no container spec", a.Task.ID)
	}
	s := scopeOf(a)
	env, err := s.expandAll("env", spec.Env)
	if err != nil {
		return container.CreateRequest{}, err
	}
	hostname, err := s.expandAll("hostname", []string{spec.Hostname})
	if err != nil {
		return container.CreateRequest{}, err
	}
	host, err := hostConfig(a, s)
	if err != nil {
		return container.CreateRequest{}, err
	}
	return container.CreateRequest{
		Config: &container.Config{
			Hostname:    hostname[0],
			User:        spec.User,
			Tty:         spec.TTY,
			OpenStdin:   spec.OpenStdin,
			Env:         env,
			Cmd:         spec.Args,
			Healthcheck: spec.Healthcheck,
			Image:       spec.Image,
			WorkingDir:  spec.Dir,
			Entrypoint:  spec.Command,
			Labels:      labels(a),
			StopSignal:  spec.StopSignal,
		},
		HostConfig: host,
	}, nil
}

func labels(a *object.Assignment) map[string]string {
	l := maps.Clone(a.Revision.Spec.ContainerSpec.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[labelTask] = ""
	l[labelTaskID] = a.Task.ID
	l[labelTaskName] = containerName(a)
	l[labelNodeID] = a.Task.NodeID
	l[labelServiceID] = a.Task.ServiceID
	l[labelService] = a.Revision.Service.Name
	return l
}

func hostConfig(a *object.Assignment, s scope) (*container.HostConfig, error) {
	spec := a.Revision.Spec.ContainerSpec
	mounts, err := s.mounts(spec.Mounts)
	if err != nil {
		return nil, err
	}
	h := &container.HostConfig{
		NetworkMode:    networkMode(a),
		CapAdd:         spec.CapabilityAdd,
		CapDrop:        spec.CapabilityDrop,
		ExtraHosts:     extraHosts(spec.Hosts),
		GroupAdd:       spec.Groups,
		OomScoreAdj:    int(spec.OomScoreAdj),
		ReadonlyRootfs: spec.ReadOnly,
		SecurityOpt:    securityOpt(spec.Privileges),
		Sysctls:        spec.Sysctls,
		Resources:      resources(a.Revision.Spec.Resources),
		Mounts:         mounts,
		Init:           spec.Init,
	}
	h.Ulimits = spec.Ulimits
	if d := a.Revision.Spec.LogDriver; d != nil {
		h.LogConfig = container.LogConfig{Type: d.Name, Config: d.Options}
	}
	if d := spec.DNSConfig; d != nil {
		h.DNS, h.DNSSearch, h.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	return h, nil
}

func resources(r *swarm.ResourceRequirements) container.Resources {
	var out container.Resources
	if r == nil {
		return out
	}
	if l := r.Limits; l != nil {
		out.NanoCPUs, out.Memory = l.NanoCPUs, l.MemoryBytes
		if l.Pids > 0 {
			out.PidsLimit = &l.Pids
		}
	}
	if v := r.Reservations; v != nil {
		out.MemoryReservation = v.MemoryBytes
	}
	if r.SwapBytes != nil && out.Memory > 0 {
		out.MemorySwap = *r.SwapBytes
		if *r.SwapBytes >= 0 {
			out.MemorySwap += out.Memory
		}
	}
	out.MemorySwappiness = r.MemorySwappiness
	return out
}

// extraHosts turns lines of a hosts file ("address name name…") into Docker's
// name:address entries.
func extraHosts(lines []string) []string {
	var out []string
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		for _, name := range fields[1:] {
			out = append(out, name+":"+fields[0])
		}
	}
	return out
}

func securityOpt(p *swarm.Privileges) []string {
	if p == nil {
		return nil
	}
	var out []string
	if p.NoNewPrivileges {
		out = append(out, "no-new-privileges=true")
	}
	if p.Seccomp != nil {
		switch p.Seccomp.Mode {
		case swarm.SeccompModeUnconfined:
			out = append(out, "seccomp=unconfined")
		case swarm.SeccompModeCustom:
			out = append(out, "seccomp="+string(p.Seccomp.Profile))
		case swarm.SeccompModeDefault:
		}
	}
	if p.AppArmor != nil && p.AppArmor.Mode == swarm.AppArmorModeDisabled {
		out = append(out, "apparmor=unconfined")
	}
	return out
}

// mounts are the spec's mounts with their templates expanded, or the reason
// why the node refuses them.
func (s scope) mounts(in []mount.Mount) ([]mount.Mount, error) {
	out := slices.Clone(in)
	for i := range out {
		m := &out[i]
		var err error
		if m.Source, err = s.expand(m.Source, nil); err != nil {
			return nil, fmt.Errorf("expanding mount source %q: %w", m.Source, err)
		}
		if m.Target, err = s.expand(m.Target, nil); err != nil {
			return nil, fmt.Errorf("expanding mount target %q: %w", m.Target, err)
		}
		if m.VolumeOptions != nil {
			if m.VolumeOptions, err = s.volumeOptions(*m.VolumeOptions); err != nil {
				return nil, err
			}
		}
		if err := checkMount(m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s scope) volumeOptions(o mount.VolumeOptions) (*mount.VolumeOptions, error) {
	var err error
	if o.Labels, err = s.expandMap("volume label", o.Labels); err != nil {
		return nil, err
	}
	if o.DriverConfig != nil {
		d := *o.DriverConfig
		if d.Options, err = s.expandMap("volume driver option", d.Options); err != nil {
			return nil, err
		}
		o.DriverConfig = &d
	}
	return &o, nil
}

func (s scope) expandMap(what string, in map[string]string) (map[string]string, error) {
	out := maps.Clone(in)
	for k, v := range in {
		text, err := s.expand(v, nil)
		if err != nil {
			return nil, fmt.Errorf("expanding %s %q: %w", what, k, err)
		}
		out[k] = text
	}
	return out, nil
}

func checkMount(m *mount.Mount) error {
	bad := func(format string, args ...any) error {
		return object.Errorf(errdefs.ErrInvalidArgument, format, args...)
	}
	if !path.IsAbs(m.Target) {
		return bad("invalid mount target, must be an absolute path: %s", m.Target)
	}
	switch m.Type {
	case mount.TypeBind:
		if !path.IsAbs(m.Source) {
			return bad("invalid bind mount source, must be an absolute path: %s", m.Source)
		}
	case mount.TypeVolume:
		if path.IsAbs(m.Source) {
			return bad("invalid volume mount source, must not be an absolute path: %s", m.Source)
		}
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("invalid tmpfs source, source must be empty")
		}
	default:
		return bad("invalid mount type: %s", m.Type)
	}
	return nil
}
