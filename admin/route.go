package admin

import (
	"fmt"
	"net/http"
	"strings"
)

// Role is how much a caller may do. Roles are ordered: each may do what the
// ones below it may. The zero Role may do nothing and lets nobody in.
type Role int

// The roles, from least to most.
const (
	Nobody Role = iota
	// Viewer sees everything but tokens and keys.
	Viewer
	// Operator also changes services, nodes, images and containers.
	Operator
	// Admin also changes the swarm itself, sees join tokens and the unlock key,
	// and may run programs inside containers.
	Admin
)

func (r Role) String() string {
	switch r {
	case Viewer:
		return "viewer"
	case Operator:
		return "operator"
	case Admin:
		return "admin"
	case Nobody:
	}
	return "nobody"
}

// ParseRole reads the name of a role.
func ParseRole(name string) (Role, error) {
	for _, r := range []Role{Viewer, Operator, Admin} {
		if r.String() == name {
			return r, nil
		}
	}
	return Nobody, fmt.Errorf("unknown role %q; want viewer, operator or admin", name)
}

// Route is one row of the authorisation table together with what it leads to:
// what has no row cannot be reached.
type Route struct {
	// Pattern is a pattern of [http.ServeMux] with a method and without the
	// API version, such as "GET /services/{id}".
	Pattern string
	// Role is the least role that is let in. Required.
	Role Role
	// Mutates marks a request that changes something: it is audited.
	Mutates bool
	// Stream lifts the cap on the request's body, for archives and for
	// connections that become streams.
	Stream  bool
	Handler http.Handler
}

// check tells what is wrong with a row.
func (r Route) check() error {
	method, path, ok := strings.Cut(r.Pattern, " ")
	switch {
	case !ok || method == "" || !strings.HasPrefix(path, "/"):
		return fmt.Errorf("route %q: want METHOD /path", r.Pattern)
	case r.Role <= Nobody || r.Role > Admin:
		return fmt.Errorf("route %q: no role", r.Pattern)
	case r.Handler == nil:
		return fmt.Errorf("route %q: no handler", r.Pattern)
	case !r.Mutates && method != http.MethodGet && method != http.MethodHead && r.Role < Operator:
		return fmt.Errorf("route %q: only GET and HEAD are open to viewers", r.Pattern)
	}
	return nil
}
