package object

import (
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Limits of what a swarm stores, in bytes.
const (
	maxSecret = 500 << 10
	maxConfig = 1000 << 10
)

func invalid(format string, args ...any) error {
	return Errorf(errdefs.ErrInvalidArgument, format, args...)
}

// ValidateSecret says what is wrong with a secret's spec.
func ValidateSecret(s swarm.SecretSpec) error {
	if err := validateName(s.Name); err != nil {
		return err
	}
	if s.Driver != nil && s.Driver.Name != "" {
		if len(s.Data) != 0 {
			return invalid("secret data must be empty when using an external secret driver")
		}
		return nil
	}
	if len(s.Data) == 0 || len(s.Data) >= maxSecret {
		return invalid("secret data must be larger than 0 and less than %d bytes", maxSecret)
	}
	return validateTemplating(s.Templating)
}

// ValidateConfig says what is wrong with a config's spec.
func ValidateConfig(c swarm.ConfigSpec) error {
	if err := validateName(c.Name); err != nil {
		return err
	}
	if len(c.Data) == 0 || len(c.Data) >= maxConfig {
		return invalid("config data must be larger than 0 and less than %d bytes", maxConfig)
	}
	return validateTemplating(c.Templating)
}

func validateTemplating(d *swarm.Driver) error {
	if d != nil && d.Name != "" && d.Name != "golang" {
		return invalid("unrecognized template type")
	}
	return nil
}

// validateName is for secrets and configs.
func validateName(name string) error {
	switch {
	case name == "":
		return invalid("name must be provided")
	case len(name) > 64 || !alnum(name[0]) || !alnum(name[len(name)-1]) || !consists(name, "-_."):
		return invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	}
	return nil
}

// ValidateNode says what is wrong with a node's spec.
func ValidateNode(s swarm.NodeSpec) error {
	switch s.Role {
	case swarm.NodeRoleManager, swarm.NodeRoleWorker:
	default:
		return invalid("invalid Role: %q", s.Role)
	}
	switch s.Availability {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return invalid("invalid Availability: %q", s.Availability)
	}
	return nil
}

// ValidateService says what is wrong with a service's spec, as far as it shows
// without the rest of the swarm.
func ValidateService(s swarm.ServiceSpec) error {
	for _, check := range [...]func(*swarm.ServiceSpec) error{
		serviceName, ingressSource, serviceMode, taskTemplate, updateConfigs, endpointSpec,
	} {
		if err := check(&s); err != nil {
			return err
		}
	}
	return nil
}

func serviceName(s *swarm.ServiceSpec) error { return dnsName(s.Name) }

func ingressSource(s *swarm.ServiceSpec) error { return ValidateSource(s.Labels) }

// dnsName is for services and networks, by whose names containers find each other.
func dnsName(n string) error {
	switch {
	case n == "":
		return invalid("meta: name must be provided")
	case !alnum(n[0]) || !alnum(n[len(n)-1]) || !consists(n, "-_"):
		return invalid("name must be valid as a DNS name component")
	case len(n) > 63:
		return invalid("name must be 63 characters or fewer")
	}
	return nil
}

func serviceMode(s *swarm.ServiceSpec) error {
	m, modes := s.Mode, 0
	for _, set := range [...]bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			modes++
		}
	}
	if modes > 1 {
		return invalid("must specify only one service mode")
	}
	negative := func(n *uint64) bool { return n != nil && int64(*n) < 0 } // as clients send it
	switch {
	case m.Replicated != nil && negative(m.Replicated.Replicas):
		return invalid("Number of replicas must be non-negative")
	case m.ReplicatedJob != nil && negative(m.ReplicatedJob.MaxConcurrent):
		return invalid("Maximum concurrent jobs must be non-negative")
	case m.ReplicatedJob != nil && negative(m.ReplicatedJob.TotalCompletions):
		return invalid("Total completed jobs must be non-negative")
	case (m.ReplicatedJob != nil || m.GlobalJob != nil) && (s.UpdateConfig != nil || s.RollbackConfig != nil):
		return invalid("Jobs may not have an update config")
	}
	return nil
}

func updateConfigs(s *swarm.ServiceSpec) error {
	for _, u := range [...]*swarm.UpdateConfig{s.UpdateConfig, s.RollbackConfig} {
		if u == nil {
			continue
		}
		switch u.FailureAction {
		case "", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback:
		default:
			return invalid("unrecognized update failure action %s", u.FailureAction)
		}
		switch u.Order {
		case "", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst:
		default:
			return invalid("unrecognized update order %s", u.Order)
		}
		switch {
		case u.Delay < 0:
			return invalid("TaskSpec: update-delay cannot be negative")
		case u.Monitor < 0:
			return invalid("TaskSpec: update-monitor cannot be negative")
		case !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1): // nor NaN
			return invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
		}
	}
	return nil
}

func endpointSpec(s *swarm.ServiceSpec) error {
	e := fillEndpoint(Copy(s.EndpointSpec))
	switch e.Mode {
	case swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
	default:
		return invalid("invalid resolution mode: %q", e.Mode)
	}
	type published struct {
		port     uint32
		protocol string
	}
	seen := map[published]bool{}
	for _, p := range e.Ports {
		switch p.Protocol {
		case "tcp", "udp", "sctp":
		default:
			return invalid("invalid protocol value %q", p.Protocol)
		}
		switch p.PublishMode {
		case swarm.PortConfigPublishModeHost:
		case swarm.PortConfigPublishModeIngress:
			if e.Mode == swarm.ResolutionModeDNSRR {
				return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
			}
		default:
			return invalid("invalid publish mode %q", p.PublishMode)
		}
		if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 {
			return invalid("EndpointSpec: port %d:%d is not between 1 and 65535", p.PublishedPort, p.TargetPort)
		}
		pub := published{p.PublishedPort, string(p.Protocol)}
		if p.PublishedPort != 0 && seen[pub] {
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[pub] = true
	}
	return nil
}

// consists reports whether s is of ASCII letters, digits and others.
func consists(s, others string) bool {
	for i := range len(s) {
		if !alnum(s[i]) && strings.IndexByte(others, s[i]) < 0 {
			return false
		}
	}
	return true
}

func alnum(b byte) bool { return letter(b) || digit(b) }
