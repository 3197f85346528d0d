package appliance

import (
	"context"
	"net"

	"github.com/containerd/errdefs"

	"skep/appliance/manager/directory"
	"skep/appliance/share"
	"skep/appliance/wire/control"
	"skep/exec/images"
	"skep/store/object"
)

// sharing is the node's part in the images that the nodes of a swarm have in
// common. It is there before the swarm is.
type sharing struct {
	// directory is what the nodes said that they have, while this one leads.
	directory *directory.Directory
	// client asks the others; nil before the membership is made.
	client *share.Client
}

// Resolve implements [images.Source].
func (s *sharing) Resolve(ctx context.Context, name string) (images.Found, error) {
	if s.client == nil {
		return images.Found{}, object.Errorf(errdefs.ErrNotFound, "this node is not part of a swarm")
	}
	return s.client.Resolve(ctx, name)
}

// Blob implements [images.Source].
func (s *sharing) Blob(ctx context.Context, q images.Query) (images.Part, error) {
	if s.client == nil {
		return images.Part{}, object.Errorf(errdefs.ErrNotFound, "this node is not part of a swarm")
	}
	return s.client.Blob(ctx, q)
}

// newSharing knows of no images.
func (n *node) newSharing() *sharing {
	return &sharing{directory: directory.New(directory.Config{
		Manager: func(id string) bool { return n.membership.IsManager(id) },
		Nodes:   func() int { return n.membership.Expected() },
		Logger:  n.logger.With("part", "images"),
	})}
}

// sharingRoutes are those of a manager's control port.
func (n *node) sharingRoutes() []control.Route {
	nodes := []control.Class{control.Worker, control.Manager}
	relay := share.NewRelay(share.RelayConfig{
		NodeID:    func() string { return n.membership.NodeID() },
		Local:     n.images,
		Leading:   func() error { return n.membership.Leading() },
		Directory: n.sharing.directory,
		Connect:   func(ctx context.Context, id string) (net.Conn, error) { return n.membership.Connect(ctx, id) },
		From:      func(ctx context.Context) string { return control.Caller(ctx).ID },
		Logger:    n.logger.With("part", "images"),
	})
	lookup := share.Lookup(n.sharing.directory, func() error { return n.membership.Leading() })
	return []control.Route{
		{For: nodes, Pattern: share.Pattern, Handler: relay},
		{For: nodes, Pattern: "POST /lookup", Handler: control.Handle(lookup)},
	}
}
