package object

import (
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/swarm"
)

// The options of overlay networks, as Docker calls them.
const (
	OptionEncrypted = "encrypted"
	OptionMTU       = "com.docker.network.driver.mtu"
	OptionVNI       = "com.docker.network.driver.overlay.vxlanid_list"
)

// Predefined reports whether a network is one of those that every node has by
// itself. A service names them so.
func Predefined(network string) bool {
	return network == "bridge" || network == "host" || network == "none"
}

// Network is a network of the swarm, as the API shows it, and what only the
// swarm knows of it. Its IPAMOptions are what was allocated.
type Network struct {
	swarm.Network
	// Auxiliary are addresses that nobody on the network is to be given, by the
	// user's names for them.
	Auxiliary map[string]netip.Addr
	// VNI tells the network's frames from others', 0 until it is allocated.
	VNI uint32
	// Problem is why nothing could be allocated for the network, empty if all was.
	Problem string
	// PendingDelete marks a network that was removed and that tasks which end
	// are still on.
	PendingDelete bool
}

// Option is an option of the network's driver; empty if it was not given.
func (n *Network) Option(name string) (value string, ok bool) {
	if n.Spec.DriverConfiguration == nil {
		return "", false
	}
	value, ok = n.Spec.DriverConfiguration.Options[name]
	return value, ok
}

// Encrypted reports whether the network's frames are to be encrypted between
// nodes: as in Docker, the mere presence of the option says so, unless it says
// false.
func (n *Network) Encrypted() bool {
	value, ok := n.Option(OptionEncrypted)
	if on, err := strconv.ParseBool(value); err == nil {
		return on
	}
	return ok
}

// TaskNetwork is the place of a task, or of a container, on a network of the swarm.
type TaskNetwork struct {
	ID string `cbor:"1,keyasint"` // of the network
	// Addresses are one for each family of the network, with the subnet's length.
	Addresses []netip.Prefix `cbor:"2,keyasint,omitempty"`
	// Aliases are names that it answers to there, beside its own and its service's.
	Aliases []string `cbor:"3,keyasint,omitempty"`
}

// OnNetwork reports whether one of the tasks holds addresses of a network.
func OnNetwork(tasks iter.Seq[*Task], network string) bool {
	for t := range tasks {
		if !Over(t) && slices.ContainsFunc(t.Networks, func(n TaskNetwork) bool { return n.ID == network }) {
			return true
		}
	}
	return false
}

func cloneTaskNetworks(in []TaskNetwork) []TaskNetwork {
	out := slices.Clone(in)
	for i := range out {
		out[i].Addresses = slices.Clone(out[i].Addresses)
		out[i].Aliases = slices.Clone(out[i].Aliases)
	}
	return out
}

// Guest is a container that its node runs by itself, not for a service, and
// that is on an attachable network of the swarm. It is there from when the node
// asks until the node says that the container is off the network, or the node
// is removed.
type Guest struct {
	ID string
	swarm.Meta
	NodeID      string
	ContainerID string
	// Name is the container's.
	Name string
	// Wanted are addresses that the container is to have; it gets no other of
	// their families.
	Wanted []netip.Addr
	// Network has addresses as soon as they are allocated, or Problem says why not.
	Network TaskNetwork
	Problem string
}
