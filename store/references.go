package store

import (
	"cmp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// CheckService says what of a valid spec does not fit the rest of the swarm:
// secrets and configs that are not there, ports that others publish. The id is
// that of the service that the spec is for, empty if it is a new one.
func CheckService(s *Snapshot, id string, spec swarm.ServiceSpec) error {
	if c := spec.TaskTemplate.ContainerSpec; c != nil {
		var secrets, configs []string
		for _, r := range c.Secrets {
			if _, ok := s.Secrets.Get(r.SecretID); !ok {
				secrets = append(secrets, r.SecretName)
			}
		}
		for _, r := range c.Configs {
			if _, ok := s.Configs.Get(r.ConfigID); !ok {
				configs = append(configs, r.ConfigName)
			}
		}
		if err := missing("secret", secrets); err != nil {
			return err
		}
		if err := missing("config", configs); err != nil {
			return err
		}
	}
	return checkPorts(s, id, spec.EndpointSpec)
}

func missing(kind string, names []string) error {
	switch len(names) {
	case 0:
		return nil
	case 1:
		return object.Errorf(errdefs.ErrInvalidArgument, "%s not found: %s", kind, names[0])
	default:
		return object.Errorf(errdefs.ErrInvalidArgument, "%ss not found: %s", kind, strings.Join(names, ", "))
	}
}

// checkPorts lets host ports of two services be the same: the scheduler keeps
// them on different nodes.
func checkPorts(s *Snapshot, id string, spec *swarm.EndpointSpec) error {
	if spec == nil || !slices.ContainsFunc(spec.Ports, func(p swarm.PortConfig) bool { return p.PublishedPort != 0 }) {
		return nil
	}
	for other := range s.Services.All() {
		if other.ID == id {
			continue
		}
		theirs := other.Endpoint.Ports
		if e := other.Spec.EndpointSpec; e != nil {
			theirs = append(slices.Clone(theirs), e.Ports...)
		}
		for _, p := range spec.Ports {
			for _, q := range theirs {
				if err := portConflict(p, q, other); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func portConflict(p, q swarm.PortConfig, other *object.Service) error {
	protocol := func(p swarm.PortConfig) network.IPProtocol { return cmp.Or(p.Protocol, network.TCP) }
	host := func(p swarm.PortConfig) bool { return p.PublishMode == swarm.PortConfigPublishModeHost }
	if p.PublishedPort == 0 || p.PublishedPort != q.PublishedPort || protocol(p) != protocol(q) || host(p) && host(q) {
		return nil
	}
	as := "an ingress port"
	if host(q) {
		as = "a host-published port"
	}
	return object.Errorf(errdefs.ErrInvalidArgument, "port '%d' is already in use by service '%s' (%s) as %s",
		p.PublishedPort, other.Spec.Name, other.ID, as)
}

// CheckSecretUnused says which services use a secret.
func CheckSecretUnused(s *Snapshot, secret *object.Secret) error {
	return checkUnused(s, "secret", secret.Spec.Name, func(c *swarm.ContainerSpec) bool {
		return slices.ContainsFunc(c.Secrets, func(r *swarm.SecretReference) bool { return r.SecretID == secret.ID })
	})
}

// CheckConfigUnused says which services use a config.
func CheckConfigUnused(s *Snapshot, config *object.Config) error {
	return checkUnused(s, "config", config.Spec.Name, func(c *swarm.ContainerSpec) bool {
		return slices.ContainsFunc(c.Configs, func(r *swarm.ConfigReference) bool { return r.ConfigID == config.ID })
	})
}

func checkUnused(s *Snapshot, kind, name string, uses func(*swarm.ContainerSpec) bool) error {
	var users []string
	for svc := range s.Services.All() {
		if c := svc.Spec.TaskTemplate.ContainerSpec; c != nil && uses(c) {
			users = append(users, svc.Spec.Name)
		}
	}
	switch len(users) {
	case 0:
		return nil
	case 1:
		return object.Errorf(errdefs.ErrInvalidArgument, "%s '%s' is in use by the following service: %s", kind, name, users[0])
	default:
		slices.Sort(users)
		return object.Errorf(errdefs.ErrInvalidArgument, "%s '%s' is in use by the following services: %s", kind, name, strings.Join(users, ", "))
	}
}
