package runspec

import (
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Input is all that a specification is made from.
type Input struct {
	ID string
	// Config is the container's, merged with the image's; see [Merge].
	Config container.Config
	Host   container.HostConfig
	Place  Place
	// Machine is what this node can do.
	Machine Machine
}

// Place is what was made for the container.
type Place struct {
	Rootfs string
	// Netns is the path of the network namespace; empty is the node's own.
	Netns string
	// Cgroup is the cgroup's path below the root of the hierarchy.
	Cgroup string
	// Hostname, Hosts and Resolv are the files of these names; empty means none.
	Hostname, Hosts, Resolv string
	// Init is the binary for containers that ask for an init.
	Init string
	// Mounts are the user's, resolved.
	Mounts []Mount
	// Devices are the user's, looked up.
	Devices []Device
}

// Mount is one of the user's mounts.
type Mount struct {
	// Tmpfs is a new file system; else Source is bound.
	Tmpfs    bool
	Source   string
	Target   string
	ReadOnly bool
	// Options are as in mount(8), and replace the defaults of their kind.
	Options []string
}

// Device is a device node and what may be done with it.
type Device struct {
	Node   specs.LinuxDevice
	Access string // of r, w and m
}

// Machine is what this node can do.
type Machine struct {
	// SwapLimit says that swap can be limited.
	SwapLimit bool
	// Raise says that limits of resources may be raised (CAP_SYS_RESOURCE).
	Raise bool
	// Capabilities are those that this process may give, as "CAP_…"; Known are
	// all that the kernel may have.
	Capabilities, Known []string
}
