package appliance

import (
	"cmp"
	"context"
	"net"
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/admin/engine"
	"skep/appliance/logstream"
	"skep/appliance/membership"
	"skep/appliance/share"
)

// serveManagers answers what managers ask of this node.
func (n *node) serveManagers(ctx context.Context, conn net.Conn) error {
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, share.Handler(n.membership.NodeID, n.images))
	n.logs.Route(mux)
	mux.Handle("/", n.peers)
	return share.ServeConn(ctx, conn, mux, n.logger)
}

// newPeers is the part of the Engine API that managers have of this node.
func (n *node) newPeers() (http.Handler, error) {
	mux, err := admin.NewMux(admin.MuxConfig{Routes: n.api.PeerRoutes(), Audit: n.audit, Logger: n.logger.With("part", "peers")})
	if err != nil {
		return nil, err
	}
	versioned := n.api.Versioned(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		versioned.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), engine.FromManager(r))))
	}), nil
}

// newLogReader reads the logs of tasks on all nodes.
func (n *node) newLogReader() *logstream.Reader {
	return logstream.NewReader(logstream.Config{
		NodeID:    n.membership.NodeID,
		Local:     n.tasks,
		Connect:   n.membership.Connect,
		Directory: known{n.membership},
	})
}

// known is what this manager knows of the swarm, which may be old.
type known struct{ *membership.Membership }

// Node implements [logstream.Directory].
func (k known) Node(id string) (name string, down bool) {
	s, err := k.Replica()
	if err != nil {
		return id, false
	}
	n, ok := s.Nodes.Get(id)
	if !ok {
		return id, true
	}
	return cmp.Or(n.Description.Hostname, id), n.Status.State == swarm.NodeStateDown
}

// HasTask implements [logstream.Directory].
func (k known) HasTask(id string) bool {
	s, err := k.Replica()
	if err != nil {
		return false
	}
	_, ok := s.Tasks.Get(id)
	return ok
}
