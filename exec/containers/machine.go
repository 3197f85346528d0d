package containers

import (
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"

	"skep/exec/runspec"
)

// machine finds out what this node can do.
func machine() runspec.Machine {
	var m runspec.Machine
	for _, c := range capability.ListKnown() {
		name := "CAP_" + strings.ToUpper(c.String())
		m.Known = append(m.Known, name)
		if on, err := capability.GetBound(c); err == nil && on {
			m.Capabilities = append(m.Capabilities, name)
		}
	}
	m.Raise = slices.Contains(m.Capabilities, "CAP_SYS_RESOURCE")
	swap := "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
	if cgroups.IsCgroup2UnifiedMode() {
		swap = "/proc/swaps" // the root has no limits to look at
	}
	_, err := os.Stat(swap)
	m.SwapLimit = err == nil
	return m
}
