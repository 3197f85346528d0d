package object

import (
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Defaults of a service's spec, as Swarm has them.
const (
	DefaultStopGracePeriod = 10 * time.Second
	DefaultRestartDelay    = 5 * time.Second
	DefaultMonitor         = 5 * time.Second
)

// WithDefaults is the spec with the defaults filled in: what the API shows for
// insertDefaults, and what specs are compared by. It shares nothing with s.
func WithDefaults(s swarm.ServiceSpec) swarm.ServiceSpec {
	s = Copy(s)
	fillTask(&s.TaskTemplate)
	s.UpdateConfig = fillUpdate(s.UpdateConfig)
	s.RollbackConfig = fillUpdate(s.RollbackConfig)
	s.EndpointSpec = fillEndpoint(s.EndpointSpec)
	switch m := &s.Mode; {
	case m.ReplicatedJob != nil:
		j := m.ReplicatedJob
		if j.MaxConcurrent == nil {
			j.MaxConcurrent = new(uint64(1))
		}
		if j.TotalCompletions == nil {
			j.TotalCompletions = new(*j.MaxConcurrent)
		}
	case m.Global != nil || m.GlobalJob != nil:
	default:
		if m.Replicated == nil {
			m.Replicated = new(swarm.ReplicatedService)
		}
		if m.Replicated.Replicas == nil {
			m.Replicated.Replicas = new(uint64(1))
		}
	}
	return s
}

func fillTask(t *swarm.TaskSpec) {
	if t.Runtime == "" {
		t.Runtime = swarm.RuntimeContainer
	}
	if c := t.ContainerSpec; c != nil {
		if c.StopGracePeriod == nil {
			c.StopGracePeriod = new(DefaultStopGracePeriod)
		}
		if c.DNSConfig == nil {
			c.DNSConfig = new(swarm.DNSConfig)
		}
	}
	if t.RestartPolicy == nil {
		t.RestartPolicy = new(swarm.RestartPolicy)
	}
	r := t.RestartPolicy
	if r.Condition == "" {
		r.Condition = swarm.RestartPolicyConditionAny
	}
	if r.Delay == nil {
		r.Delay = new(DefaultRestartDelay)
	}
	if r.MaxAttempts == nil {
		r.MaxAttempts = new(uint64)
	}
	if t.Resources == nil {
		t.Resources = new(swarm.ResourceRequirements)
	}
	if t.Placement == nil {
		t.Placement = new(swarm.Placement)
	}
}

func fillUpdate(u *swarm.UpdateConfig) *swarm.UpdateConfig {
	if u == nil {
		u = &swarm.UpdateConfig{Parallelism: 1}
	}
	if u.FailureAction == "" {
		u.FailureAction = swarm.UpdateFailureActionPause
	}
	if u.Monitor == 0 {
		u.Monitor = DefaultMonitor
	}
	if u.Order == "" {
		u.Order = swarm.UpdateOrderStopFirst
	}
	return u
}

func fillEndpoint(e *swarm.EndpointSpec) *swarm.EndpointSpec {
	if e == nil {
		e = new(swarm.EndpointSpec)
	}
	if e.Mode == "" {
		e.Mode = swarm.ResolutionModeVIP
	}
	for i := range e.Ports {
		p := &e.Ports[i]
		if p.Protocol == "" {
			p.Protocol = network.TCP
		}
		if p.PublishMode == "" {
			p.PublishMode = swarm.PortConfigPublishModeIngress
		}
	}
	return e
}
