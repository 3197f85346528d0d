package appliance

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/wire"
	"skep/exec/images"
)

// tellHoldings tells a manager of this node's images, all of them first and
// then what changes, until ctx ends.
func tellHoldings(s *images.Store) func(ctx context.Context, send func(*wire.Holdings) error) error {
	return func(ctx context.Context, send func(*wire.Holdings) error) error {
		var told map[digest.Digest]wire.Image
		for {
			now, news := holdingsOf(s)
			for _, h := range wire.NewHoldings(told, now) {
				if err := send(h); err != nil {
					return err
				}
			}
			told = now
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-news:
			}
		}
	}
}

// holdingsOf are the images of this node as managers learn of them, by digest,
// and a channel that closes when they may have changed.
func holdingsOf(s *images.Store) (map[digest.Digest]wire.Image, <-chan struct{}) {
	held, news := s.Holdings()
	told := make(map[digest.Digest]wire.Image, len(held))
	for _, h := range held {
		told[h.Target.Digest] = wire.Image{
			// Annotations and the like steer nothing, and cost frames.
			Descriptor: ocispec.Descriptor{MediaType: h.Target.MediaType, Digest: h.Target.Digest, Size: h.Target.Size},
			Names:      h.Names,
			Platforms:  h.Platforms,
		}
	}
	return told, news
}
