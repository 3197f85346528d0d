package containers

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
)

// Stats is one sample of what the container uses. A container that does not
// run uses nothing.
func (e *Engine) Stats(_ context.Context, ref string) (container.StatsResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.StatsResponse{}, err
	}
	s := c.status()
	out := container.StatsResponse{ID: c.id, Name: "/" + c.name(), OSType: "linux", Read: time.Now().UTC()}
	if !s.Running || s.Restarting {
		return out, nil
	}
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err != nil {
		return out, fmt.Errorf("measure container %s: %w", c.id, err)
	}
	st, err := box.Stats()
	if err != nil {
		return out, fmt.Errorf("measure container %s: %w", c.id, err)
	}
	cg := st.CgroupStats
	out.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{
			TotalUsage: cg.CpuStats.CpuUsage.TotalUsage, PercpuUsage: cg.CpuStats.CpuUsage.PercpuUsage,
			UsageInKernelmode: cg.CpuStats.CpuUsage.UsageInKernelmode, UsageInUsermode: cg.CpuStats.CpuUsage.UsageInUsermode,
		},
		OnlineCPUs: uint32(runtime.NumCPU()),
		ThrottlingData: container.ThrottlingData{
			Periods: cg.CpuStats.ThrottlingData.Periods, ThrottledPeriods: cg.CpuStats.ThrottlingData.ThrottledPeriods,
			ThrottledTime: cg.CpuStats.ThrottlingData.ThrottledTime,
		},
	}
	if out.CPUStats.SystemUsage, err = systemUsage(); err != nil {
		return out, err
	}
	out.MemoryStats = memoryStats(cg)
	out.PidsStats = container.PidsStats{Current: cg.PidsStats.Current, Limit: cg.PidsStats.Limit}
	out.BlkioStats.IoServiceBytesRecursive = ioEntries(cg.BlkioStats.IoServiceBytesRecursive)
	out.BlkioStats.IoServicedRecursive = ioEntries(cg.BlkioStats.IoServicedRecursive)
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(s.Pid) + "/net/dev"); err == nil && !c.rec().Host.NetworkMode.IsHost() {
		out.Networks = interfaces(string(b))
	}
	return out, nil
}

func memoryStats(cg *cgroups.Stats) container.MemoryStats {
	m := cg.MemoryStats
	out := container.MemoryStats{
		Usage: m.Usage.Usage, MaxUsage: m.Usage.MaxUsage, Failcnt: m.Usage.Failcnt,
		Limit: m.Usage.Limit, Stats: m.Stats,
	}
	// Without a limit of its own, the machine's memory is the limit.
	if total := machineMemory(); total > 0 && (out.Limit == 0 || out.Limit > total) {
		out.Limit = total
	}
	return out
}

func machineMemory() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	return 0
}

func ioEntries(in []cgroups.BlkioStatEntry) []container.BlkioStatEntry {
	out := make([]container.BlkioStatEntry, 0, len(in))
	for _, s := range in {
		out = append(out, container.BlkioStatEntry(s))
	}
	return out
}

// systemUsage is the time that all processors have spent, in nanoseconds.
func systemUsage() (uint64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("measure machine: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("measure machine: %q is not the processors' time", line)
	}
	var ticks uint64
	for _, v := range f[1:8] {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("measure machine: %w", err)
		}
		ticks += n
	}
	return ticks * uint64(time.Second) / clockTicks, nil
}

// clockTicks is USER_HZ, which is 100 on every architecture that we run on.
const clockTicks = 100

// interfaces reads /proc/net/dev.
func interfaces(text string) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		at := func(i int) uint64 {
			n, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
		out[name] = container.NetworkStats{
			RxBytes: at(0), RxPackets: at(1), RxErrors: at(2), RxDropped: at(3),
			TxBytes: at(8), TxPackets: at(9), TxErrors: at(10), TxDropped: at(11),
		}
	}
	return out
}
