package wire

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// JoinRequest asks the manager that leads to make a machine part of the swarm.
// It is sent to nobody who has not proved to have the root that Token names.
type JoinRequest struct {
	Token string // secret
	// CSR is the request for the node's certificate, in PEM. Nothing in it but
	// its key is looked at.
	CSR          []byte
	Availability swarm.NodeAvailability
	Hostname     string
	// Addr is where the node's control port is reached, host:port, if it is to
	// be a manager.
	Addr string
	// Clock is the node's, so that one that is off is told so.
	Clock   time.Time
	Version string // of the node's program
}

// JoinReply makes a machine a node.
type JoinReply struct {
	NodeID, ClusterID string
	Role              swarm.NodeRole
	Epoch             uint64
	// Certificate is the node's own, with what leads from it to the roots;
	// Roots are those to trust. Both are PEM.
	Certificate, Roots []byte
	Managers           []Peer
	Leader             Peer
}

// RenewRequest asks for the certificate of a new key, over a connection that
// proves who asks.
type RenewRequest struct {
	CSR []byte // as in JoinRequest
}

// RenewReply is the certificate that the node is to use from now on.
type RenewReply struct {
	Certificate, Roots []byte // as in JoinReply
	Role               swarm.NodeRole
}

// ReenrolRequest asks for a certificate by one that is no longer valid. It is
// answered with a [JoinReply].
type ReenrolRequest struct {
	CSR []byte // as in JoinRequest
	// Chain is the former certificate with what led from it to a root, in PEM.
	Chain []byte
	// Signature is that of the former key over the request (pki.Endorse).
	Signature []byte
	Clock     time.Time
}
