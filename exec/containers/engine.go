package containers

import (
	"context"
	"io/fs"
	"log/slog"
	"time"

	"github.com/moby/moby/api/types/events"

	"skep/exec/images"
	"skep/exec/volumes"
	"skep/store/object"
)

// Images gives containers their root file systems.
type Images interface {
	Rootfs(ctx context.Context, ref string) (images.Rootfs, error)
}

// Networks gives containers their network namespaces.
type Networks interface {
	// Connect is idempotent: it makes namespace, addresses and ports.
	Connect(ctx context.Context, e object.Endpoint) (object.Attachment, error)
	Disconnect(ctx context.Context, id string) error
	// Retain forgets all endpoints but these.
	Retain(ctx context.Context, ids []string) error
	Attachment(id string) (object.Attachment, bool)
}

// Sealer encrypts what is written to disk.
type Sealer interface {
	Seal(domain string, plain []byte) []byte
	Open(domain string, sealed []byte) ([]byte, error)
}

// Config is what an Engine needs. All of it is required unless it says otherwise.
type Config struct {
	// Dir holds a directory per container: sealed configuration, log, and the
	// writable layer. RunDir is its counterpart for what ends with the machine;
	// it belongs on a tmpfs.
	Dir, RunDir string
	// Exe is the copy of this binary that shims run from; see shim.Install.
	Exe string
	// CgroupParent is the absolute path of the cgroup that holds all containers.
	CgroupParent string
	Images       Images
	Networks     Networks
	Volumes      *volumes.Store
	Sealer       Sealer
	// Publish tells of what happens to containers; nil tells nobody.
	Publish func(events.Message)
	Logger  *slog.Logger
}

// Extra is what a container may have beyond what the Engine API can say.
type Extra struct {
	// Files appear on a tmpfs, read-only.
	Files []File
	// Ports are published beside those of the request.
	Ports []object.Port
	// StopGrace is how long a stop waits before it kills; 0 leaves it to the
	// request's StopTimeout.
	StopGrace time.Duration
}

// File is a file that is given to a container.
type File struct {
	// Target is an absolute path in the container.
	Target   string
	Data     []byte
	UID, GID int
	Mode     fs.FileMode
}

// Engine runs containers.
type Engine struct {
	cfg Config
}
