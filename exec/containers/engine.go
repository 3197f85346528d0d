package containers

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"skep/exec/doors"
	"skep/exec/images"
	"skep/exec/runspec"
	"skep/exec/volumes"
	"skep/store/object"
)

// Images gives containers their root file systems.
type Images interface {
	Rootfs(ctx context.Context, ref string) (images.Rootfs, error)
}

// Networks gives containers their network namespaces.
type Networks interface {
	// Connect is idempotent: it makes namespace, addresses and ports. It waits a
	// while for networks of the swarm that the node does not know yet.
	Connect(ctx context.Context, e object.Endpoint) (object.Attachment, error)
	Disconnect(ctx context.Context, id string) error
	// Rewire changes the places of an endpoint on networks of the swarm, and what it
	// wants of the resolver; the rest stays. If it fails, all does.
	Rewire(ctx context.Context, e object.Endpoint) (object.Attachment, error)
	// Withdraw leads no new connection from this node to a container of its own;
	// those that it has go on.
	Withdraw(ctx context.Context, id string) error
	// Retain forgets all endpoints but these.
	Retain(ctx context.Context, ids []string) error
	Attachment(id string) (object.Attachment, bool)
}

// Sealer encrypts what is written to disk.
type Sealer interface {
	Seal(domain string, plain []byte) []byte
	Open(domain string, sealed []byte) ([]byte, error)
	// Current reports whether the active key sealed it.
	Current(sealed []byte) bool
}

// Config is what an Engine needs. All of it is required unless it says otherwise.
type Config struct {
	// Dir holds a directory per container: sealed configuration, log, and the
	// writable layer. RunDir is its counterpart for what ends with the machine
	// ("containers" and "libcontainer" in it); it belongs on a tmpfs.
	Dir, RunDir string
	// Exe is the program that shims run from; see shim.Install.
	Exe string
	// CgroupParent is the absolute path of the cgroup that holds all containers.
	CgroupParent string
	Images       Images
	Networks     Networks
	// Guests gives places on networks of the swarm; nil means that there are none.
	Guests  Guests
	Volumes *volumes.Store
	Sealer  Sealer
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
	// Overlays are the container's places on networks of the swarm.
	Overlays []object.Overlay `json:",omitempty"`
	// StopGrace is how long a stop waits before it kills; 0 leaves it to the
	// request's StopTimeout.
	StopGrace time.Duration
}

// File is a file that is given to a container.
type File = doors.File

// Engine runs containers. Its methods may be called from any goroutine.
type Engine struct {
	cfg     Config
	machine runspec.Machine
	// work hands goroutines to Run, which owns them.
	work    chan func(context.Context)
	stopped chan struct{} // closed when Run returns
	moves   moves
	// found are the containers of an earlier run, until Run takes them over.
	found []*instance
	// saving keeps files from being written while they are sealed anew.
	saving sync.RWMutex

	mu    sync.Mutex
	byID  map[string]*instance
	names map[string]string // name → ID
	execs map[string]*execution
}

// Open finds the containers of an earlier run again: those that still run, and
// what became of the others. Only Run starts to watch over them.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	e := &Engine{
		cfg: cfg, machine: machine(),
		work: make(chan func(context.Context)), stopped: make(chan struct{}),
		byID: map[string]*instance{}, names: map[string]string{}, execs: map[string]*execution{},
	}
	for _, dir := range []string{cfg.Dir, e.runDir(""), e.stateRoot()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("open containers: %w", err)
		}
	}
	if err := makeRoom(cfg.CgroupParent); err != nil {
		// A node that runs no containers is one, too; those that start will fail.
		cfg.Logger.WarnContext(ctx, "found no room for cgroups", "err", err)
	}
	if err := e.load(ctx); err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	return e, nil
}

// Run supervises containers until ctx ends. They go on running.
func (e *Engine) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer e.removeParent()
	defer wg.Wait()
	defer close(e.stopped)
	for _, c := range e.found {
		wg.Go(func() { e.resume(ctx, c) })
	}
	for {
		select {
		case f := <-e.work:
			wg.Go(func() { f(ctx) })
		case <-ctx.Done():
			return nil
		}
	}
}

// removeParent takes the parent of the containers' cgroups away, if there are
// none: the next one makes it again.
func (e *Engine) removeParent() {
	const root = "/sys/fs/cgroup"
	dirs := []string{filepath.Join(root, e.cfg.CgroupParent)}
	if entries, err := os.ReadDir(root); err == nil {
		for _, d := range entries {
			dirs = append(dirs, filepath.Join(root, d.Name(), e.cfg.CgroupParent))
		}
	}
	for _, d := range dirs {
		_ = unix.Rmdir(d) // most are not there, and one in use stays
	}
}

// background runs f under Run's care, as soon as Run does.
func (e *Engine) background(ctx context.Context, f func(context.Context)) error {
	select {
	case e.work <- f:
		return nil
	case <-e.stopped:
		return stopping()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *Engine) dir(id string) string    { return filepath.Join(e.cfg.Dir, id) }
func (e *Engine) runDir(id string) string { return filepath.Join(e.cfg.RunDir, "containers", id) }
func (e *Engine) logDir(id string) string { return filepath.Join(e.dir(id), "logs") }
func (e *Engine) stateRoot() string       { return filepath.Join(e.cfg.RunDir, "libcontainer") }
func (e *Engine) cgroup(id string) string { return path.Join("/", e.cfg.CgroupParent, id) }

// all is every container, the oldest first.
func (e *Engine) all() []*instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := slices.Collect(maps.Values(e.byID))
	slices.SortFunc(list, func(a, b *instance) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id))
	})
	return list
}

// find resolves an ID, a name or a unique prefix of an ID.
func (e *Engine) find(ref string) (*instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.byID[ref]; c != nil {
		return c, nil
	}
	if id, ok := e.names[strings.TrimPrefix(ref, "/")]; ok {
		return e.byID[id], nil
	}
	var found *instance
	for id, c := range e.byID {
		if ref == "" || !strings.HasPrefix(id, ref) {
			continue
		}
		if found != nil {
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "multiple IDs found with provided prefix: %s", ref)
		}
		found = c
	}
	if found == nil {
		return nil, object.Errorf(errdefs.ErrNotFound, "No such container: %s", ref)
	}
	return found, nil
}

// ImageUsers are the containers made from an image.
func (e *Engine) ImageUsers(imageID string) (users []images.User) {
	for _, c := range e.all() {
		if c.rec().ImageID == imageID {
			users = append(users, images.User{Container: c.id, Running: c.status().Running})
		}
	}
	return users
}
