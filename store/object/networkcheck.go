package object

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/network"
)

// NetworkCheck is how a network of the swarm is doing, as its nodes tell. It is
// for operators, and shown as it is.
type NetworkCheck struct {
	ID, Name string
	Nodes    []NodeCheck
}

// NodeCheck is one node's view of a network: what its kernel and its name
// servers have of it, and who answers.
type NodeCheck struct {
	Node string // its ID
	// Hostname is known to managers only.
	Hostname string `json:",omitempty"`
	// Unavailable is why the node says nothing; then nothing else is filled in.
	Unavailable string `json:",omitempty"`
	// Version is the store's index that the node's network is made by.
	Version uint64
	// Asker is who asked the endpoints: a container's short ID, or the routing
	// mesh; empty if there was nobody to ask from.
	Asker string `json:",omitempty"`
	// Faults are what is wrong with the node's part of the network as a whole.
	Faults    []string        `json:",omitempty"`
	Endpoints []EndpointCheck // in the order of names
}

// Well reports whether nothing is wrong.
func (n NodeCheck) Well() bool {
	for _, e := range n.Endpoints {
		if e.Result == CheckUnprogrammed || e.Result == CheckSilent {
			return false
		}
	}
	return n.Unavailable == "" && len(n.Faults) == 0
}

// CheckResult is what became of an endpoint's check.
type CheckResult string

// The results. An endpoint that does not serve, or that there was nobody to ask
// from, is not asked.
const (
	CheckOK           CheckResult = "ok"
	CheckSilent       CheckResult = "no answer"
	CheckUnprogrammed CheckResult = "not programmed"
	CheckUnasked      CheckResult = "not asked"
)

// CheckMark says whether a part of a node has an endpoint as it is to be.
type CheckMark string

// The marks; CheckNone is for a part that is not to have it.
const (
	CheckYes  CheckMark = "yes"
	CheckNo   CheckMark = "no"
	CheckNone CheckMark = "-"
)

// EndpointCheck is what one node knows of a task or a guest on the network.
type EndpointCheck struct {
	ID        string // of the task or the guest
	Name      string
	Node      string // the ID of the node that it is on
	Addresses []netip.Addr
	State     string // prepared, active or draining
	// Frames: the kernel sends to it. Names: name servers tell it. Balancer:
	// connections to its service are led to it.
	Frames, Names, Balancer CheckMark
	// Echo is how long its kernel took to answer, the slowest of its addresses.
	Echo   time.Duration `json:",omitempty"` // in nanoseconds
	Result CheckResult
	// Reason is why the result is not ok.
	Reason string `json:",omitempty"`
}

// NetworkHealth is how a node does its part for all networks of the swarm.
type NetworkHealth struct {
	// Balancer is the part of the kernel that balances, ipvs or nft; empty if
	// there is none. BalancerReason is why it is not ipvs, if it is not.
	Balancer       string
	BalancerReason string `json:",omitempty"`
	// Encrypts: the node can have encrypted networks.
	Encrypts bool
	// Repaired is how many differences between what was wanted and what was
	// there the process has mended since it began.
	Repaired uint64
	// Lacks are parts of the kernel that the node does without, in words.
	Lacks []string `json:",omitempty"`
	// Fault is why the node does not follow what the managers say, if so.
	Fault string `json:",omitempty"`
	// Missing are networks that the node is to have and has not, or not in full.
	Missing []MissingNetwork `json:",omitempty"`
	// Conflicts are published ports that this node does not answer on, or could
	// not keep from other programs.
	Conflicts []PortConflict `json:",omitempty"`
}

// MissingNetwork is a network that a node has not, or not in full.
type MissingNetwork struct {
	ID, Name string
	Reason   string
}

// PortConflict is a published port that the node does not have, or may lose.
type PortConflict struct {
	Protocol network.IPProtocol
	Port     uint16
	Service  string // its ID
	Reason   string
}
