package runspec

import (
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/store/object"
)

const cpuPeriod = 100_000 // µs

func (in *Input) resources(warn func(string)) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: in.Host.Privileged, Access: "rwm"}},
		CPU:     &specs.LinuxCPU{Cpus: in.Host.CpusetCpus, Mems: in.Host.CpusetMems},
		Memory:  &specs.LinuxMemory{},
	}
	if err := in.cpu(r.CPU); err != nil {
		return nil, err
	}
	if err := in.memory(r.Memory, warn); err != nil {
		return nil, err
	}
	if n := in.Host.PidsLimit; n != nil && *n > 0 {
		r.Pids = &specs.LinuxPids{Limit: n}
	}
	if w := in.Host.BlkioWeight; w > 0 {
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	for _, d := range in.Place.Devices {
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Node.Type, Major: &d.Node.Major, Minor: &d.Node.Minor, Access: d.Access,
		})
	}
	return r, nil
}

func (in *Input) cpu(c *specs.LinuxCPU) error {
	h := &in.Host.Resources
	if h.NanoCPUs < 0 {
		return object.Errorf(errdefs.ErrInvalidArgument, "invalid NanoCPUs: value must not be negative")
	}
	if h.NanoCPUs > 0 && (h.CPUPeriod > 0 || h.CPUQuota > 0) {
		return object.Errorf(errdefs.ErrInvalidArgument, "Conflicting options: Nano CPUs and CPU Period cannot both be set")
	}
	if h.CPUShares > 0 {
		c.Shares = new(uint64(h.CPUShares))
	}
	if h.NanoCPUs > 0 {
		c.Period = new(uint64(cpuPeriod))
		c.Quota = new(h.NanoCPUs * cpuPeriod / 1e9)
	}
	if h.CPUPeriod > 0 {
		c.Period = new(uint64(h.CPUPeriod))
	}
	if h.CPUQuota > 0 {
		c.Quota = new(h.CPUQuota)
	}
	return nil
}

// minMemory is the least that a process can start in.
const minMemory = 6 << 20

func (in *Input) memory(m *specs.LinuxMemory, warn func(string)) error {
	h := &in.Host.Resources
	bad := func(text string) error { return object.Errorf(errdefs.ErrInvalidArgument, "%s", text) }
	switch {
	case h.Memory != 0 && h.Memory < minMemory:
		return bad("Minimum memory limit allowed is 6MB")
	case h.Memory == 0 && h.MemorySwap > 0:
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	case h.Memory > 0 && h.MemorySwap > 0 && h.MemorySwap < h.Memory:
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	case h.Memory > 0 && h.MemoryReservation > h.Memory:
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	case h.MemorySwappiness != nil && (*h.MemorySwappiness < -1 || *h.MemorySwappiness > 100):
		return bad("Invalid value: memory swappiness can only be between 0 and 100")
	}
	if h.MemoryReservation > 0 {
		m.Reservation = new(h.MemoryReservation)
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness >= 0 {
		m.Swappiness = new(uint64(*h.MemorySwappiness))
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		m.DisableOOMKiller = h.OomKillDisable
	}
	if h.Memory == 0 {
		return nil
	}
	m.Limit = new(h.Memory)
	if !in.Machine.SwapLimit {
		warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		return nil
	}
	m.Swap = new(h.Memory * 2)
	if h.MemorySwap != 0 {
		m.Swap = new(h.MemorySwap)
	}
	return nil
}
