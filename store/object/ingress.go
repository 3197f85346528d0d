package object

import (
	"fmt"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// LabelSource is the label by which a service asks how its published ports treat
// the addresses of clients: [SourcePreserve], which is the default, or [SourceSNAT].
const LabelSource = "skep.ingress.source"

// How a service's published ports treat the addresses of clients.
const (
	SourcePreserve = "preserve" // the service sees them
	SourceSNAT     = "snat"     // it sees that of the node that they came to
)

// KeptPorts is how many of a service's ports the routing mesh publishes with the
// addresses of clients: each takes a port of every task for each node.
const KeptPorts = 40

// LastSlot is the highest number that a node can have in the routing mesh; the
// lowest is 1.
const LastSlot = 1<<10 - 1

// ValidateSource says what is wrong with a service's [LabelSource].
func ValidateSource(labels map[string]string) error {
	switch value, ok := labels[LabelSource]; {
	case !ok, value == SourcePreserve, value == SourceSNAT:
		return nil
	default:
		return invalid("label %s: %q is neither %q nor %q", LabelSource, value, SourcePreserve, SourceSNAT)
	}
}

// Source is how a service with these labels wants clients' addresses treated.
func Source(labels map[string]string) string {
	if labels[LabelSource] == SourceSNAT {
		return SourceSNAT
	}
	return SourcePreserve
}

// InMesh reports whether a port is one of the routing mesh, on all nodes.
func InMesh(p swarm.PortConfig) bool {
	return p.PublishMode == "" || p.PublishMode == swarm.PortConfigPublishModeIngress
}

// Carried reports whether the routing mesh has ways for a protocol.
func Carried(p network.IPProtocol) bool { return p == "" || p == network.TCP || p == network.UDP }

// PublishedAs says what is not as users might expect of a service's ports in
// the routing mesh; both are empty if there is nothing. It follows from the
// service alone, and so is the same on every node.
//
// source is why the service does not see the addresses of its clients, or of
// some; unserved is which ports nobody answers on.
func PublishedAs(labels map[string]string, ports []swarm.PortConfig) (source, unserved string) {
	published, foreign, late := 0, 0, false
	for _, p := range ports {
		if !InMesh(p) {
			continue
		}
		published++
		switch {
		case !Carried(p.Protocol):
			foreign++
		case published > KeptPorts:
			late = true
		}
	}
	if foreign > 0 {
		unserved = fmt.Sprintf("%d of %d published ports: the routing mesh carries tcp and udp", foreign, published)
	}
	switch {
	case published == foreign:
	case Source(labels) == SourceSNAT:
		source = fmt.Sprintf("snat: the label %s says so", LabelSource)
	case late:
		source = fmt.Sprintf("snat on all but the first %d published ports", KeptPorts)
	}
	return source, unserved
}
