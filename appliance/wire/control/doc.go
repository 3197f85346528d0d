// Package control is the control port, and how other nodes reach it: one TCP
// port on every manager, TLS 1.3 only, with two protocols inside (ALPN): h2 for
// requests and streams, and skep-raft/1 for Raft's own framing.
//
// Who is at the other end is the certificate's word, what that is worth now is
// the [Judge]'s: it is asked when a connection begins, at every request, and
// again by [Port.Review], which ends all connections, and with them their
// streams, whose standing has changed. A connection belongs to one [Class], and
// each class has a mux of its own that shares nothing with the others': a route
// that a class was not given does not exist for it. What a node asks for as the
// other class of nodes, it asks for as its own. No connection outlives its
// certificates. Only what the caller's own certificate says is believed:
// nobody's identity is passed on by another.
//
// The hello, {protocol, cluster, epoch, from, to}, opens every Raft connection
// and is a header of every request, so that nodes of other swarms, or of the
// same swarm before a forced recovery, are told so in words.
//
// The package keeps no list of nodes and retries nothing: what is broken ends,
// and the callers' loops come back.
package control

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"skep/pki"
)

// Class is what a caller may be.
type Class string

// The classes, from the least. Nobody is who has a certificate that is worth
// nothing, or not yet; Expelled is who certainly was removed.
const (
	Nobody    Class = ""
	Expelled  Class = "expelled"
	Anonymous Class = "anonymous" // shows no certificate
	Worker    Class = "worker"
	Manager   Class = "manager"
)

// prefix is where the routes of a class are.
func (c Class) prefix() string {
	switch c {
	case Anonymous:
		return "/a/v1"
	case Worker:
		return "/w/v1"
	case Manager:
		return "/m/v1"
	default:
		return ""
	}
}

// classOf is the class that a certificate's role names.
func classOf(role string) Class {
	switch role {
	case pki.Manager:
		return Manager
	case pki.Worker:
		return Worker
	default:
		return Nobody
	}
}

// Judge says what a verified certificate is worth now: Nobody, Expelled, Worker or
// Manager; never more than the certificate says. With raft it is asked whether
// the node may speak Raft here, which only a Manager may.
type Judge func(n pki.Node, raft bool) Class

// Route is a route for some classes. Its pattern is one of [http.ServeMux] with
// a method; the prefix of the class is added to its path.
type Route struct {
	For     []Class
	Pattern string
	Handler http.Handler
}

// Row is a route as one class sees it.
type Row struct {
	Class   Class
	Pattern string // "POST /w/v1/session"
}

// route makes the mux of each class.
func route(routes []Route) (map[Class]*http.ServeMux, []Row, error) {
	muxes := map[Class]*http.ServeMux{Anonymous: http.NewServeMux(), Worker: http.NewServeMux(), Manager: http.NewServeMux()}
	for _, mux := range muxes {
		mux.HandleFunc("/", noRoute)
	}
	var table []Row
	for _, r := range routes {
		if len(r.For) == 0 {
			return nil, nil, fmt.Errorf("route %q is for no class", r.Pattern)
		}
		method, path, ok := strings.Cut(r.Pattern, " ")
		if !ok || method == "" || !strings.HasPrefix(path, "/") || r.Handler == nil {
			return nil, nil, fmt.Errorf("route %q is not METHOD /path, or has no handler", r.Pattern)
		}
		for _, c := range r.For {
			mux := muxes[c]
			if mux == nil {
				return nil, nil, fmt.Errorf("route %q is for unknown class %q", r.Pattern, c)
			}
			row := Row{Class: c, Pattern: method + " " + c.prefix() + path}
			if slices.Contains(table, row) {
				return nil, nil, fmt.Errorf("route %q is there twice for class %s", r.Pattern, c)
			}
			table = append(table, row)
			mux.Handle(row.Pattern, r.Handler)
		}
	}
	return muxes, table, nil
}

// errClosed is the use of a port's or a dialer's part after its end.
var errClosed = errors.New("control: closed")
