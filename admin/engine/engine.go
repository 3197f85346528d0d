package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"

	"skep/admin"
)

// Config is what the API stands on. All fields are required unless they say otherwise.
type Config struct {
	Swarm      Swarm
	Containers Containers
	Images     Images
	Volumes    Volumes
	Networks   Networks
	TaskLogs   TaskLogs
	Host       Host
	Events     *Journal
	// Connect opens a connection on which another node serves [API.PeerRoutes],
	// if this one is a manager. Without it there are no other nodes.
	Connect func(ctx context.Context, node string) (net.Conn, error)
	// LocalExecOnly lets nobody into containers by [API.PeerRoutes].
	LocalExecOnly bool
	// Version is the product's version, for the Server header.
	Version string
	Logger  *slog.Logger
}

// API serves the Engine API's routes.
type API struct {
	Config
	remote *http.Transport
}

// New checks that everything is there.
func New(c Config) (*API, error) {
	switch {
	case c.Swarm == nil, c.Host == nil, c.Events == nil, c.Logger == nil:
		return nil, errors.New("engine: swarm, host, events and logger are required")
	case c.Containers == nil, c.Images == nil, c.Volumes == nil, c.Networks == nil, c.TaskLogs == nil:
		return nil, errors.New("engine: the node's runtime is required")
	}
	return &API{Config: c, remote: newRemote(c.Connect)}, nil
}

// handler serves one route; its error becomes the reply.
type handler func(w http.ResponseWriter, r *http.Request) error

// Routes is every route of the API. Patterns have no version in them: wrap the
// mux that they are put in with [API.Versioned].
func (a *API) Routes() []admin.Route {
	return slices.Concat(
		a.systemRoutes(),
		a.swarmRoutes(),
		a.nodeRoutes(),
		a.serviceRoutes(),
		a.taskRoutes(),
		a.secretRoutes(),
		a.configRoutes(),
		a.distributionRoutes(),
		a.containerRoutes(),
		a.imageRoutes(),
		a.volumeRoutes(),
		a.networkRoutes(),
		a.checkRoutes(),
		a.usageRoutes(),
	)
}

// read is a route that viewers may use.
func (a *API) read(pattern string, h handler) admin.Route {
	return admin.Route{Pattern: pattern, Role: admin.Viewer, Handler: a.serve(h)}
}

// write is a route that changes something, for role and above.
func (a *API) write(role admin.Role, pattern string, h handler) admin.Route {
	return admin.Route{Pattern: pattern, Role: role, Mutates: true, Handler: a.serve(h)}
}

// stream is r without a cap on the request's body: an archive, or a connection
// that becomes a stream.
func stream(r admin.Route) admin.Route {
	r.Stream = true
	return r
}

// serve turns a handler's error into a reply.
func (a *API) serve(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := &tracked{ResponseWriter: w}
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			r = r.WithContext(context.WithValue(r.Context(), readKey{}, http.ResponseWriter(t)))
		}
		if err := h(t, r); err != nil {
			a.fail(t, r, err)
		}
	})
}

// tracked knows whether the reply has begun, when an error can no longer be told.
type tracked struct {
	http.ResponseWriter
	begun bool
}

func (t *tracked) WriteHeader(status int) {
	t.begun = true
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracked) Write(p []byte) (int, error) {
	t.begun = true
	return t.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] flush and hijack.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }
