package dataplane

import (
	"context"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/net/balance"
	"skep/net/dns"
	"skep/net/esp"
	"skep/net/ingress"
	"skep/net/overlay"
	"skep/store/object"
)

// Attach is the node's own networks; net/attach is one.
type Attach interface {
	Connect(ctx context.Context, e object.Endpoint) (object.Attachment, error)
	Disconnect(ctx context.Context, id string) error
	Retain(ctx context.Context, ids []string) error
	Attachment(id string) (object.Attachment, bool)
	Attachments() []object.Attachment
	// Amend changes the places on networks of the swarm, and what is wanted of the
	// resolver, that are kept of an endpoint.
	Amend(ctx context.Context, e object.Endpoint) (object.Attachment, error)
	// Serves reports whether Connect would change nothing.
	Serves(e object.Endpoint) bool
	List(ctx context.Context) ([]network.Inspect, error)
	Stats(id string) (map[string]container.NetworkStats, error)
}

// Overlay is what carries frames between nodes; net/overlay is one.
type Overlay interface {
	Set(ctx context.Context, networks []*overlay.Network) error
	Attach(ctx context.Context, a overlay.Attachment) error
	Detach(ctx context.Context, id string, networks ...string) error
	Attached(id string) []overlay.Attachment
	Retain(ctx context.Context, ids []string) error
	Namespace(network string) (path string, ok bool)
	Inspect(ctx context.Context, network string) (overlay.State, error)
	Check(ctx context.Context) (repaired int, err error)
	Stats(id string) (map[string]container.NetworkStats, error)
	Repaired() uint64
}

// Mesh is the published ports of the swarm; net/ingress has one.
type Mesh interface {
	Set(ctx context.Context, s ingress.MeshState) error
	Join(ctx context.Context, m ingress.Member) error
	Check(ctx context.Context) (repaired int, err error)
	Inspect(ctx context.Context) (faults []string, err error)
	Conflicts() []ingress.Conflict
}

// Resolver answers containers' questions for names; net/dns is one.
type Resolver interface {
	Set(s dns.State)
	Open(ctx context.Context, c dns.Client) error
	Shut(id string)
	Retain(ids []string)
	Check(ctx context.Context) (repaired int, err error)
}

// Encryption is what encrypts between nodes; net/esp is one.
type Encryption interface {
	Set(ctx context.Context, s esp.State) error
	Check(ctx context.Context) (repaired int, err error)
}

// Balancer leads the addresses of services to their tasks, in one container's
// namespace; net/balance has one.
type Balancer interface {
	Set(ctx context.Context, services []balance.Service) error
	Check(ctx context.Context) (repaired int, err error)
	Inspect(ctx context.Context) (differences int, err error)
	Close() error
}
