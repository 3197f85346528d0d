package admin

import (
	"context"
	"log/slog"
)

// Principal is who sent a request.
type Principal struct {
	// Name is who it is in words: "uid 0", "cid 2", or the common name of the
	// client's certificate.
	Name string
	// Transport is "unix", "vsock" or "tcp".
	Transport string
	// Detail is what else is known for the record: the program and the process,
	// or the address.
	Detail string
	Role   Role
}

// LogValue puts the principal in one attribute.
func (p Principal) LogValue() slog.Value {
	return slog.StringValue(p.Transport + " " + p.Name + " (" + p.Role.String() + ")")
}

type principalKey struct{}

// WithPrincipal is a context of requests that come from p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// Caller is who sent the request that ctx belongs to. Without one it is a
// principal that may do nothing.
func Caller(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}
