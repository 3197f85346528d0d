package engine

import (
	"github.com/moby/moby/api/types/swarm"
)

// gateSpec takes out of a spec what a client of this version of the API cannot
// have meant, because its version did not have it.
func gateSpec(spec *swarm.ServiceSpec, minor int) {
	task := &spec.TaskTemplate
	if minor < 40 && task.Placement != nil {
		task.Placement.MaxReplicas = 0
	}
	if r := task.Resources; r != nil {
		if minor < 52 {
			r.SwapBytes, r.MemorySwappiness = nil, nil
		}
		if minor < 41 && r.Limits != nil {
			r.Limits.Pids = 0
		}
	}
	if task.ContainerSpec != nil {
		gateContainer(task.ContainerSpec, minor)
	}
}

func gateContainer(c *swarm.ContainerSpec, minor int) {
	if minor < 46 {
		c.OomScoreAdj = 0
		for i := range c.Mounts {
			if t := c.Mounts[i].TmpfsOptions; t != nil {
				t.Options = nil
			}
		}
	}
	if minor < 44 {
		if p := c.Privileges; p != nil {
			p.Seccomp, p.AppArmor, p.NoNewPrivileges = nil, nil, false
		}
		if c.Healthcheck != nil {
			c.Healthcheck.StartInterval = 0
		}
	}
	if minor < 41 {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
	}
	if minor < 40 {
		c.Sysctls = nil
		if p := c.Privileges; p != nil && p.CredentialSpec != nil {
			p.CredentialSpec.Config = ""
		}
	}
}
