package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// MaxBody is the size in bytes of a request's body, unless its route streams.
// The largest that a client sends is a config of 1000 KiB in base64.
const MaxBody = 4 << 20

// MuxConfig is what a Mux is made of.
type MuxConfig struct {
	Routes []Route
	// Audit records what mutates. Required.
	Audit *Audit
	// Other answers what no route takes; nil means 404.
	Other http.HandlerFunc
	// Hosts are the names that tcp clients may call the node by, beside its
	// addresses.
	Hosts  []string
	Logger *slog.Logger
}

// Mux leads requests to their routes, if their callers may go there.
type Mux struct {
	mux    *http.ServeMux
	routes []Route
	other  http.HandlerFunc
	audit  *Audit
	hosts  []string
	logger *slog.Logger
}

// NewMux checks every route and puts them together. A route without a role, or
// one that is there twice, is an error.
func NewMux(c MuxConfig) (*Mux, error) {
	if c.Audit == nil || c.Logger == nil {
		return nil, errors.New("admin mux: audit and logger are required")
	}
	m := &Mux{
		mux:    http.NewServeMux(),
		other:  c.Other,
		audit:  c.Audit,
		hosts:  append([]string{"localhost"}, c.Hosts...),
		logger: c.Logger,
	}
	if m.other == nil {
		// Also where the standard mux would answer 405: Docker's clients expect this.
		m.other = func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound, "page not found") }
	}
	for _, r := range c.Routes {
		if err := m.add(r); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// add turns the standard mux's panics about patterns into errors.
func (m *Mux) add(r Route) (err error) {
	if err = r.check(); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("route %q: %v", r.Pattern, p)
		}
	}()
	m.mux.Handle(r.Pattern, m.guard(r))
	m.routes = append(m.routes, r)
	return nil
}

// wildcards are the names of a pattern's wildcards, in order.
func wildcards(pattern string) (names []string) {
	for {
		_, rest, ok := strings.Cut(pattern, "{")
		if !ok {
			return names
		}
		name, after, _ := strings.Cut(rest, "}")
		if name = strings.TrimSuffix(name, "..."); name != "$" {
			names = append(names, name)
		}
		pattern = after
	}
}

// Routes are the rows of the table.
func (m *Mux) Routes() []Route { return slices.Clone(m.routes) }

func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller := Caller(r.Context())
	if why := m.crossSite(r, caller); why != "" {
		m.logger.WarnContext(r.Context(), "refused request", "principal", caller, "reason", why)
		refuse(w, http.StatusForbidden, why)
		return
	}
	if _, pattern := m.mux.Handler(r); pattern == "" {
		m.other(w, r)
		return
	}
	m.mux.ServeHTTP(w, r)
}

// guard is what a route's requests go through before they reach its handler.
func (m *Mux) guard(route Route) http.Handler {
	params := wildcards(route.Pattern)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := Caller(r.Context())
		if route.Mutates {
			rec := m.record(w, r, caller, params)
			defer rec.end()
			w, r = rec, r.WithContext(context.WithValue(r.Context(), recorderKey{}, rec))
		}
		if caller.Role < route.Role {
			if rec, ok := w.(*recorder); ok {
				rec.line.Decision = "deny"
			}
			refuse(w, http.StatusForbidden, fmt.Sprintf("access denied: %s is %s and %s is for %s",
				cmp.Or(caller.Name, "the caller"), caller.Role, route.Pattern, route.Role))
			return
		}
		if !route.Stream && r.Body != nil {
			r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
			if rec, ok := w.(*recorder); ok {
				r.Body = tee{r.Body, rec}
			}
		}
		route.Handler.ServeHTTP(w, r)
	})
}

// crossSite tells why a request may be the doing of a web page in its caller's
// browser, which holds the caller's certificate. Sockets cannot be reached so.
func (m *Mux) crossSite(r *http.Request, caller Principal) string {
	if caller.Transport != "tcp" {
		return ""
	}
	if !m.known(r.Host) {
		return fmt.Sprintf("host %q is not this node's", r.Host)
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || u.Scheme != "https" || u.Host != r.Host {
			return fmt.Sprintf("origin %q is not this node's", origin)
		}
	}
	return ""
}

// known tells whether host is an address or one of the node's names: a name
// that somebody else made up for the node's address is neither.
func (m *Mux) known(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return slices.ContainsFunc(m.hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// refuse answers in the shape of Docker's errors.
func refuse(w http.ResponseWriter, status int, message string) {
	body, _ := json.Marshal(map[string]string{"message": message}) // cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
