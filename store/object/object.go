package object

import (
	"net/netip"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
)

// Kind names a table of the store.
type Kind string

// The kinds of objects.
const (
	KindCluster  Kind = "cluster"
	KindNode     Kind = "node"
	KindService  Kind = "service"
	KindRevision Kind = "revision"
	KindTask     Kind = "task"
	KindSecret   Kind = "secret"
	KindConfig   Kind = "config"
	KindNetwork  Kind = "network"
	KindGuest    Kind = "guest"
)

// Object is what a table of the store holds. Implementations are pointers to
// the structs of this package.
type Object interface {
	Kind() Kind
	// Key is the object's ID, unique in its table.
	Key() string
	// Metadata is the object's version and times; the store fills it in.
	Metadata() *swarm.Meta
	// Clone is a copy that may be changed. It is deep enough that no change to
	// the copy through any of its fields reaches the original.
	Clone() Object
}

// Cluster is the one object about the swarm itself.
type Cluster struct {
	ID string
	swarm.Meta
	Spec            swarm.Spec
	DefaultAddrPool []string // CIDR
	SubnetSize      uint32
	DataPathPort    uint32
	JoinTokens      swarm.JoinTokens
	RootCA          RootCA
	// Epoch tells the swarm from its former self before a forced recovery.
	Epoch uint64
	// UnlockKey opens the keystores of managers that are locked; secret. It is
	// empty while managers start by themselves.
	UnlockKey []byte
	// KEKVersion is the store's index at which UnlockKey was last changed.
	KEKVersion uint64
	GossipKeys KeyRing
	// TunnelKeys are what the keys of encrypted networks are derived from, for
	// each pair of nodes. No node but the managers has them.
	TunnelKeys KeyRing
}

// KeyRing is keys that nodes have in common; secret. A new key is first added,
// then used, and then the others are removed; whoever has missed one of these
// steps still understands the others.
type KeyRing struct {
	// Version grows with each step.
	Version uint64
	// Keys are 32 bytes each, three at most; the first is the one to send with.
	Keys [][]byte
	Step KeyStep
	// Stepped is when Step was begun, and Rotated when the newest key was made;
	// both in Unix nanoseconds.
	Stepped, Rotated int64
	// Departures counts the nodes that held the keys and were removed or
	// demoted, and Answered is as far as that was followed by a new key.
	Departures, Answered uint64
}

// KeyStep is how far a change of keys is.
type KeyStep string

// The steps. While a key is added it is the last and nobody sends with it; when
// it is used it is the first, and the others are still understood.
const (
	KeyRest KeyStep = ""
	KeyAdd  KeyStep = "add"
	KeyUse  KeyStep = "use"
)

// RootCA is the swarm's certificate authority.
type RootCA struct {
	Cert []byte // PEM
	Key  []byte // PEM, PKCS#8; secret; empty if an external authority has it
	// Rotation is the change to another root that is under way, if any.
	Rotation *RootRotation
	// Retired are former roots, which prove nothing but who may enrol again.
	Retired []RetiredRoot
	// Forced is the CAConfig.ForceRotate that was last carried out.
	Forced uint64
}

// RootRotation is a change of the swarm's root that is under way.
type RootRotation struct {
	ID        string
	Phase     RotationPhase
	Cert, Key []byte // of the new root, PEM; the key is secret
	// Cross is the new root's key under the old root: PEM. Leaves of the new
	// root verify under the old one with it.
	Cross             []byte
	Started, Deadline int64 // Unix nanoseconds; the deadline is the phase's
	// Renew is the generation that certificates of the new root have at least,
	// and Asked when nodes were last asked to renew theirs (Unix nanoseconds).
	// Both are zero before the phase in which they get them.
	Renew uint64
	Asked int64
}

// RotationPhase is how far a change of root is.
type RotationPhase string

// The phases, in order. In the first the nodes learn to trust the new root, in
// the second they get certificates of it.
const (
	RotationTrust RotationPhase = "trust"
	RotationIssue RotationPhase = "issue"
)

// RetiredRoot is a former root.
type RetiredRoot struct {
	Cert []byte // PEM
	// Cross is the root that followed, under this one, in PEM: by it a node
	// that was away still believes the managers.
	Cross []byte
	Until int64 // Unix nanoseconds
}

// Node is one member of the swarm.
type Node struct {
	swarm.Node
	// CertRole is the role in the certificate that the node was last issued.
	CertRole swarm.NodeRole
	// Generation is that of the certificate that the node was last issued, or
	// less but more than that of any before it. Certificates older than
	// MinGeneration are worth nothing.
	Generation, MinGeneration uint64
	// Renew asks the node for a new certificate if its own is of an older
	// generation.
	Renew uint64
	// KeyHash is the SHA-256 of the public key in that certificate: a node that
	// asks again for the same key is the same node.
	KeyHash []byte
	// RaftID is the node's name among the replicas, as the node told it; empty
	// on a worker.
	RaftID string
	// DataPath is where the traffic between containers of this node and of
	// others goes: an IP address, as the node told it.
	DataPath string
	// Boot is another one whenever the node's kernel has lost the keys of encrypted
	// networks, as the node told it.
	Boot string
	// Slot is the node's number in the routing mesh, 1 to 1023; 0 until it has
	// one. No two nodes have the same.
	Slot int
	// StateSince is when Status.State last changed, by the clock of the manager
	// that led then.
	StateSince int64 // Unix nanoseconds
}

// DataAddr is where the traffic between containers of this node and of others
// goes: its DataPath or, if that is none, where its session came from. It is not
// valid if neither is an address of one machine.
func (n *Node) DataAddr() netip.Addr {
	for _, text := range []string{n.DataPath, n.Status.Addr} {
		a, err := netip.ParseAddr(text)
		if err == nil && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

// Service is a service as the API shows it, and what its tasks need.
type Service struct {
	swarm.Service
	// SpecVersion is the version of the service at which its Spec was last
	// changed: the revision that its tasks are to run.
	SpecVersion swarm.Version
	// PendingDelete marks a service that was removed and whose tasks are not all gone.
	PendingDelete bool
	// Auth and PreviousAuth are the registry's credentials for Spec and PreviousSpec.
	Auth, PreviousAuth *registry.AuthConfig
}

// Revision is one version of what a service's tasks run. It is written with
// the service and goes when no task refers to it. Its key is RevisionKey.
type Revision struct {
	ServiceID   string
	SpecVersion swarm.Version
	swarm.Meta
	Service  swarm.Annotations // name and labels at that time
	Spec     swarm.TaskSpec
	Endpoint *swarm.EndpointSpec
	Auth     *registry.AuthConfig
}

// Task is one attempt to run a revision of a service. Its spec is that of the
// revision (ServiceID, SpecVersion). There are many tasks: numbers for names
// make their encoding half as long. A number is never used for another field.
type Task struct {
	ID string `cbor:"1,keyasint,omitempty"`
	swarm.Meta
	ServiceID    string           `cbor:"2,keyasint,omitempty"`
	SpecVersion  swarm.Version    `cbor:"3,keyasint,omitempty"`
	Slot         int              `cbor:"4,keyasint,omitempty"`
	NodeID       string           `cbor:"5,keyasint,omitempty"`
	DesiredState swarm.TaskState  `cbor:"6,keyasint,omitempty"`
	Status       swarm.TaskStatus `cbor:"7,keyasint,omitempty"`
	// AppliedAt is when a manager last wrote Status, by the manager's clock.
	AppliedAt int64 `cbor:"8,keyasint,omitempty"` // Unix nanoseconds
	// RunningSince is when a manager first saw the task running; 0 if never.
	RunningSince int64 `cbor:"9,keyasint,omitempty"` // Unix nanoseconds
	// Ports are the service's published ports, with those chosen by the allocator.
	Ports []swarm.PortConfig `cbor:"10,keyasint,omitempty"`
	// NotBefore is when the restart supervisor lets the task run; 0 means at once.
	NotBefore int64 `cbor:"11,keyasint,omitempty"` // Unix nanoseconds
	// Replaces is the task in whose place this one comes, if any.
	Replaces     string         `cbor:"12,keyasint,omitempty"`
	JobIteration *swarm.Version `cbor:"13,keyasint,omitempty"`
	// Networks are the networks of the swarm that the task is on, in the order of
	// its revision's; that of the routing mesh, if the task publishes ports there,
	// is the last.
	Networks []TaskNetwork `cbor:"14,keyasint,omitempty"`
	// Leaving: its node leads no new connections to it, since it is about to end
	// though nobody of the swarm asked for it.
	Leaving bool `cbor:"15,keyasint,omitempty"`
}

// Secret is a secret with its data.
type Secret struct{ swarm.Secret }

// Config is a config with its data.
type Config struct{ swarm.Config }

// Assignment is a task as its node gets it. Specs are filled in and may not be
// changed; secrets and configs are those that the task refers to.
type Assignment struct {
	Task     *Task
	Revision *Revision
	Node     NodeInfo
	Secrets  []*Secret
	Configs  []*Config
}

// NodeInfo is what templates and labels say of the task's node.
type NodeInfo struct {
	ID, Hostname string
	Platform     swarm.Platform
}
