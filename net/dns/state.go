// SPDX-License-Identifier: Apache-2.0

package dns

import "net/netip"

// State is what containers are answered from. It and all that it points to
// must not change once it was given to [Resolver.Set].
type State struct {
	// Version is reported by [Resolver.Version] and means nothing else here.
	Version uint64
	// Networks are by ID. What was derived from a *Network is kept as long as
	// the pointer stays: only a network that changed is to be a new one.
	Networks map[string]*Network
}

// Network is what is known of a network. Names are compared without regard to case.
type Network struct {
	ID string
	// Name makes every other name known as <name>.<network's name>, too.
	Name string
	// Subnets are the network's: their addresses are never looked up elsewhere.
	Subnets   []netip.Prefix
	Services  []Service
	Endpoints []Endpoint
}

// Service is a service on a network.
type Service struct {
	ID   string
	Name string
	// Aliases are known while an endpoint of the service is active.
	Aliases []string
	// VIPs answer for the service's name and aliases. Without one, the addresses
	// of its active endpoints do.
	VIPs []netip.Addr
}

// Endpoint is a task or guest on a network.
type Endpoint struct {
	// Service is the ID of the service, empty for a guest.
	Service string
	// Active: others are to be led to it.
	Active bool
	// Names are its own. They are known even while it is not active: a task
	// finds itself.
	Names []string
	// Aliases are names that others may have, too. They are known while one that
	// has them is active.
	Aliases   []string
	Addresses []netip.Addr
}
