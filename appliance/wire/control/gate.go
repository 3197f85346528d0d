package control

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

// linkKey is the key of a request's connection in its context.
type linkKey struct{}

func linkFrom(ctx context.Context) *link {
	l, _ := ctx.Value(linkKey{}).(*link)
	return l
}

// Caller is the node that sent a request; zero for an anonymous one.
func Caller(ctx context.Context) pki.Node {
	if l := linkFrom(ctx); l != nil {
		return l.node
	}
	return pki.Node{}
}

// Source is the address that a request came from.
func Source(ctx context.Context) netip.Addr {
	if l := linkFrom(ctx); l != nil {
		if a, err := netip.ParseAddrPort(l.RemoteAddr().String()); err == nil {
			return a.Addr().Unmap().WithZone("")
		}
	}
	return netip.Addr{}
}

// maxAnonymous is the size of what strangers may send, in bytes.
const maxAnonymous = 64 << 10

// gate stands before the mux of a class: it judges the caller and checks its
// hello at every request.
func (p *Port) gate(class Class, mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := p.pass(class, r); err != nil {
			// The node may be somebody else at its next connection.
			w.Header().Set("Connection", "close")
			writeValue(w, statusGate, wire.Refuse(err))
			return
		}
		if class == Anonymous {
			r.Body = http.MaxBytesReader(w, r.Body, maxAnonymous)
		} else {
			r = asClass(class, r)
		}
		mux.ServeHTTP(w, r)
	})
}

// asClass is a node's request for the routes of the class that it was judged to
// be of: a node which was just demoted asks as what its certificate says.
func asClass(class Class, r *http.Request) *http.Request {
	for _, c := range []Class{Worker, Manager} {
		rest, ok := strings.CutPrefix(r.URL.Path, c.prefix()+"/")
		if !ok || c == class {
			continue
		}
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = class.prefix()+"/"+rest, ""
	}
	return r
}

func (p *Port) pass(class Class, r *http.Request) error {
	l := linkFrom(r.Context())
	if l == nil {
		return object.Errorf(errdefs.ErrPermissionDenied, "the connection is not known")
	}
	now, id, text := p.judge(l), p.cfg.Identity(), r.Header.Get(helloHeader)
	if class == Anonymous && now == Anonymous {
		return nil
	}
	if g := l.hello.Load(); now == class && g != nil && g.id == id && g.text == text {
		return nil
	}
	h, err := parseHeader(text)
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "%w", err)
	}
	// First, for it says more than what the certificate is worth.
	if err := id.check(h, l.node); err != nil {
		return err
	}
	switch now {
	case class:
	case Expelled:
		return object.Errorf(wire.ErrExpelled, "Permission denied: node %s was removed from swarm", l.node.ID)
	default:
		return object.Errorf(errdefs.ErrPermissionDenied, "node %s may not use this manager with its certificate", l.node.ID)
	}
	l.hello.Store(&greeting{text, id})
	return nil
}
