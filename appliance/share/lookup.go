package share

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

// Question asks which image a name means in the swarm.
type Question struct{ Name string }

// Answer is what a name means. Vouched says that a manager has it so.
type Answer struct {
	Image   wire.Image
	Vouched bool
}

// Directory knows which node has which images.
type Directory interface {
	Lookup(name string) (image wire.Image, vouched, ok bool)
	Holders(image digest.Digest) []string
	// Complete reports whether what the directory does not know is nowhere.
	Complete() bool
}

// notFound is the error about what a directory does not know.
func notFound(dir Directory, format string, args ...any) error {
	if !dir.Complete() {
		return object.Errorf(errdefs.ErrUnavailable, "not all nodes have told yet what they have")
	}
	return object.Errorf(errdefs.ErrNotFound, format, args...)
}

// Lookup answers questions from a directory, if this manager leads.
func Lookup(dir Directory, leading func() error) func(context.Context, pki.Node, *Question) (*Answer, error) {
	return func(_ context.Context, _ pki.Node, q *Question) (*Answer, error) {
		if err := leading(); err != nil {
			return nil, err
		}
		image, vouched, ok := dir.Lookup(q.Name)
		if !ok {
			return nil, notFound(dir, "no node of the swarm has image %.300s", q.Name)
		}
		image.Names = nil // nobody asked for them
		return &Answer{Image: image, Vouched: vouched}, nil
	}
}
