package images

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is the images of other nodes. Its errors are not-found when no node
// has what is asked for or there are no other nodes, and unavailable when that
// cannot be known now.
type Source interface {
	// Resolve tells which image a canonical name with a tag or a digest means.
	Resolve(ctx context.Context, name string) (Found, error)
	// Blob opens a blob. It does not verify.
	Blob(ctx context.Context, q Query) (Part, error)
}

// Found is an image that other nodes have.
type Found struct {
	Descriptor ocispec.Descriptor
	Platforms  []ocispec.Platform
	// Vouched: the one who says that this is what the name means may be
	// believed without asking the registry.
	Vouched bool
}

// Query asks for a blob of an image.
type Query struct {
	Image, Digest digest.Digest
	Offset        int64
	Avoid         []string // nodes that are not to be asked
}

// Part is a blob from the offset on.
type Part struct {
	Body io.ReadCloser
	From string // the node that has it
	Size int64  // of the whole blob
}
