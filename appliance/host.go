package appliance

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// Version and Commit are those of the binary; the build sets them.
var (
	Version = "dev"     //nolint:gochecknoglobals // the linker can set nothing else
	Commit  = "unknown" //nolint:gochecknoglobals // as above
)

// The versions of the Engine API that are served.
const (
	apiVersion    = "1.51"
	minAPIVersion = "1.24"
)

// host tells of the machine.
type host struct {
	id       string // stays the same for a data directory
	hostname string
	root     string
	labels   map[string]string
	memory   int64
	kernel   string
	os       string
	osID     string
}

func readHost(id, hostname, root string, labels map[string]string) (*host, error) {
	h := &host{id: id, hostname: hostname, root: root, labels: labels}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	h.kernel = unix.ByteSliceToString(u.Release[:])
	if h.hostname == "" {
		h.hostname = unix.ByteSliceToString(u.Nodename[:])
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	h.memory = int64(si.Totalram) * int64(si.Unit)
	release := osRelease()
	h.os, h.osID = release["PRETTY_NAME"], release["VERSION_ID"]
	if h.os == "" {
		h.os = "Linux"
	}
	return h, nil
}

// osRelease reads os-release(5); a machine without one has no fields.
func osRelease() map[string]string {
	fields := map[string]string{}
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return fields
	}
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		key, value, ok := strings.Cut(sc.Text(), "=")
		if !ok {
			continue
		}
		if plain, err := strconv.Unquote(value); err == nil {
			value = plain
		}
		fields[key] = value
	}
	return fields
}

// arch is the machine's architecture as uname(1) names it.
func arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// Info is what `docker info` shows of the machine. Counts of containers and
// images and the swarm are the API's to fill in.
func (h *host) Info(context.Context) (system.Info, error) {
	cgroupVersion := "1"
	if cgroups.IsCgroup2UnifiedMode() {
		cgroupVersion = "2"
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(h.labels)) {
		labels = append(labels, k+"="+h.labels[k])
	}
	return system.Info{
		ID:              h.id,
		Driver:          "overlay2",
		DriverStatus:    [][2]string{{"Supports d_type", "true"}, {"Native Overlay Diff", "true"}},
		Plugins:         system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "local"}},
		MemoryLimit:     true,
		SwapLimit:       true,
		CPUCfsPeriod:    true,
		CPUCfsQuota:     true,
		CPUShares:       true,
		CPUSet:          true,
		PidsLimit:       true,
		IPv4Forwarding:  true,
		NGoroutines:     runtime.NumGoroutine(),
		SystemTime:      time.Now().UTC().Format(time.RFC3339Nano),
		LoggingDriver:   "json-file",
		CgroupDriver:    "cgroupfs",
		CgroupVersion:   cgroupVersion,
		KernelVersion:   h.kernel,
		OperatingSystem: h.os,
		OSVersion:       h.osID,
		OSType:          "linux",
		Architecture:    arch(),
		NCPU:            runtime.NumCPU(),
		MemTotal:        h.memory,
		DockerRootDir:   h.root,
		Name:            h.hostname,
		Labels:          labels,
		ServerVersion:   Version,
		Runtimes:        map[string]system.RuntimeWithStatus{"libcontainer": {Runtime: system.Runtime{Path: "libcontainer"}}},
		DefaultRuntime:  "libcontainer",
		// Containers go on when the daemon stops, as with Docker's live restore.
		LiveRestoreEnabled: true,
		InitBinary:         "skep",
		SecurityOptions:    []string{"name=seccomp,profile=builtin", "name=cgroupns"},
		RegistryConfig:     &registry.ServiceConfig{IndexConfigs: map[string]*registry.IndexInfo{}},
		FirewallBackend:    &system.FirewallInfo{Driver: "nftables"},
	}, nil
}

// Version is what `docker version` shows of the server.
func (h *host) Version(context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "Skep"},
		Version:       Version,
		APIVersion:    apiVersion,
		MinAPIVersion: minAPIVersion,
		Os:            "linux",
		Arch:          runtime.GOARCH,
		GitCommit:     Commit,
		GoVersion:     runtime.Version(),
		KernelVersion: h.kernel,
		Components: []system.ComponentVersion{{
			Name:    "Engine",
			Version: Version,
			Details: map[string]string{
				"ApiVersion": apiVersion, "MinAPIVersion": minAPIVersion, "Arch": runtime.GOARCH, "Os": "linux",
				"GitCommit": Commit, "GoVersion": runtime.Version(), "KernelVersion": h.kernel, "Experimental": "false",
			},
		}},
	}, nil
}

// describe is what the scheduler learns of the machine.
func (h *host) describe(tls swarm.TLSInfo) swarm.NodeDescription {
	return swarm.NodeDescription{
		Hostname: h.hostname,
		Platform: swarm.Platform{Architecture: arch(), OS: "linux"},
		Resources: swarm.Resources{
			NanoCPUs:    int64(runtime.NumCPU()) * 1e9,
			MemoryBytes: h.memory,
		},
		Engine: swarm.EngineDescription{
			EngineVersion: Version,
			Labels:        h.labels,
			Plugins: []swarm.PluginDescription{
				{Type: "Log", Name: "json-file"},
				{Type: "Log", Name: "local"},
				{Type: "Network", Name: "bridge"},
				{Type: "Network", Name: "host"},
				{Type: "Network", Name: "null"},
				{Type: "Volume", Name: "local"},
			},
		},
		TLSInfo: tls,
	}
}
