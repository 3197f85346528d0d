package containers

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// Door is the first statement of main. If the process was started as a
// container's init or to create one, it does that and taken is true: main
// then exits with code at once.
func Door() (code int, taken bool) { return 0, false }

// Open finds the containers of an earlier run again.
func Open(ctx context.Context, cfg Config) (*Engine, error) { return &Engine{cfg: cfg}, ctx.Err() }

// Run supervises containers until ctx ends. They go on running.
func (e *Engine) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// UsesImage lists the containers made from an image, by ID.
func (e *Engine) UsesImage(imageID string) []string { return nil }

// CreateWith makes a container that has more than the Engine API can say.
func (e *Engine) CreateWith(ctx context.Context, name string, req container.CreateRequest, x Extra) (container.CreateResponse, error) {
	return container.CreateResponse{}, fmt.Errorf("create container: %w", errdefs.ErrNotImplemented)
}
