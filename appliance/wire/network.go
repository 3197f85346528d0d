package wire

import (
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// Networks is what a node is to know of the networks that its tasks and guests
// are on, the routing mesh among them: all of it (Complete) or what changed.
// Items replace those of the same key.
//
// Invariant: the last part, the one without More, makes the set whole: what it
// says is in force, and holds for the store's index Version. The node answers
// with that version ([Programmed]) when its kernel and its DNS follow it.
type Networks struct {
	Complete bool
	More     bool
	Version  uint64
	Items    []NetworkItem
}

// NetworkItem is one fact. Exactly one of the pointers is set; Gone says that
// what has its key is to be forgotten, and then only the key's fields are filled in.
type NetworkItem struct {
	Network  *Network        `cbor:"1,keyasint,omitempty"`
	Service  *NetworkService `cbor:"2,keyasint,omitempty"`
	Endpoint *Endpoint       `cbor:"3,keyasint,omitempty"`
	Host     *Host           `cbor:"4,keyasint,omitempty"`
	Gone     bool            `cbor:"5,keyasint,omitempty"`

	encoded []byte // see Encoded
}

// Network is a network of the swarm as nodes know it. Its key is ID; with it
// goes all that is on it.
type Network struct {
	ID        string   `cbor:"1,keyasint,omitempty"`
	Name      string   `cbor:"2,keyasint,omitempty"`
	VNI       uint32   `cbor:"3,keyasint,omitempty"`
	MTU       int      `cbor:"4,keyasint,omitempty"` // 0: what the underlay bears
	Subnets   []Subnet `cbor:"5,keyasint,omitempty"`
	Internal  bool     `cbor:"6,keyasint,omitempty"`
	Ingress   bool     `cbor:"7,keyasint,omitempty"`
	Encrypted bool     `cbor:"8,keyasint,omitempty"`
}

// Subnet is one of a network's.
type Subnet struct {
	Prefix  netip.Prefix `cbor:"1,keyasint,omitempty"`
	Gateway netip.Addr   `cbor:"2,keyasint,omitempty"`
}

// NetworkService is a service on a network. Its key is Network and ID.
type NetworkService struct {
	Network string `cbor:"1,keyasint,omitempty"`
	ID      string `cbor:"2,keyasint,omitempty"`
	Name    string `cbor:"3,keyasint,omitempty"`
	// VIPs are one for each family of the network; none in DNS round-robin mode.
	VIPs []netip.Addr `cbor:"4,keyasint,omitempty"`
	// Source is [object.SourcePreserve] or [object.SourceSNAT]; empty but on the routing mesh.
	Source string `cbor:"5,keyasint,omitempty"`
	// Published are the ports of the service in the routing mesh, if Network is it.
	Published []MeshPort `cbor:"6,keyasint,omitempty"`
}

// MaxSlot is the highest number of a node in the routing mesh.
const MaxSlot = 1023

// MeshPort is a port that is published on all nodes.
type MeshPort struct {
	Protocol  network.IPProtocol `cbor:"1,keyasint,omitempty"`
	Published uint16             `cbor:"2,keyasint,omitempty"`
	Target    uint16             `cbor:"3,keyasint,omitempty"`
	// Index tells the ports of one task apart, from 0: it chooses their wire ports.
	Index int `cbor:"4,keyasint,omitempty"`
}

// EndpointState is how far an endpoint takes part in its network.
type EndpointState string

// The states. Frames find an endpoint in all of them; names and balancers lead
// to it while it is active; while it drains it keeps the connections that it has.
const (
	EndpointPrepared EndpointState = "prepared"
	EndpointActive   EndpointState = "active"
	EndpointDraining EndpointState = "draining"
)

// Endpoint is a task or a guest on a network. Its key is Network and ID.
type Endpoint struct {
	Network string        `cbor:"1,keyasint,omitempty"`
	ID      string        `cbor:"2,keyasint,omitempty"` // of the task or the guest
	Service string        `cbor:"3,keyasint,omitempty"` // empty for a guest
	Node    string        `cbor:"4,keyasint,omitempty"`
	State   EndpointState `cbor:"5,keyasint,omitempty"`
	// Addresses are one for each family of the network.
	Addresses []netip.Addr `cbor:"6,keyasint,omitempty"`
	// Names are those of this container alone, Aliases those that others of its
	// service may have too.
	Names   []string `cbor:"7,keyasint,omitempty"`
	Aliases []string `cbor:"8,keyasint,omitempty"`
	// Ports are the task's in the routing mesh, if Network is it.
	Ports []MeshPort `cbor:"9,keyasint,omitempty"`
}

// Host is a node. Its key is ID. A node that is on a network is told of all of them.
type Host struct {
	ID string `cbor:"1,keyasint,omitempty"`
	// Address is where its traffic between containers goes.
	Address netip.Addr `cbor:"2,keyasint,omitempty"`
	// Slot is its number in the routing mesh, 0 if it has none.
	Slot int `cbor:"3,keyasint,omitempty"`
	// Down: the managers hold it for dead; nothing is to be led to it.
	Down bool `cbor:"4,keyasint,omitempty"`
}

// Programmed says that the node's kernel and DNS are as [Networks] of this
// version said.
type Programmed struct {
	Networks uint64
	// Tunnels is the version of the keys that the kernel has, see [Tunnels].
	Tunnels uint64 `cbor:",omitempty"`
	// Leaving are those of the node's own tasks that it leads nothing to, whatever
	// it was told: all of them.
	Leaving []string `cbor:",omitempty"`
}

// Tunnels are the keys of the node's traffic with others on encrypted networks:
// always all that are in force. Secret. An earlier set is not to be used again
// when a later one was in force.
type Tunnels struct {
	Version uint64
	Pairs   []TunnelPair
}

// TunnelPair is what goes between this node and another.
type TunnelPair struct {
	Node    string
	Address netip.Addr
	// In are the keys to receive with, all that may still be in use; Out is the
	// one to send with, nil while the other does not have it.
	In  []TunnelKey
	Out *TunnelKey
}

// TunnelKey is one direction's.
type TunnelKey struct {
	SPI uint32
	// Key is 16 bytes for AES-128-GCM, and then 4 of salt (RFC 4106).
	Key []byte
}
