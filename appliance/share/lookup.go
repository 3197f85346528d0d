package share

import (
	"context"

	"github.com/containerd/errdefs"

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
}

// Lookup answers questions from a directory, if this manager leads.
func Lookup(dir Directory, leading func() error) func(context.Context, pki.Node, *Question) (*Answer, error) {
	return func(_ context.Context, _ pki.Node, q *Question) (*Answer, error) {
		if err := leading(); err != nil {
			return nil, err
		}
		image, vouched, ok := dir.Lookup(q.Name)
		if !ok {
			return nil, object.Errorf(errdefs.ErrNotFound, "no node of the swarm has image %.300s", q.Name)
		}
		image.Names = nil // nobody asked for them
		return &Answer{Image: image, Vouched: vouched}, nil
	}
}
