// Package images is the node's image store: names, manifests, configs and
// layers, and the verbs of the docker CLI on them.
//
// A name refers to a target, the digest of a manifest or of an index; an image
// is a target with the one of its manifests that runs here. An image's ID is
// the digest of its config. An image on record is complete: its manifest and
// config are verified and all its layers are unpacked and synced. Names change
// in one atomic write after everything that they refer to is there, so a crash
// leaves at worst content that nobody refers to, which the next sweep removes.
//
// The package does not know containers: it is told which images are in use.
package images

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/content"
	"skep/exec/layers"
	"skep/exec/registry"
)

// User is a container that uses an image.
type User struct {
	Container string // ID
	Running   bool
}

// Config is what a Store is made of.
type Config struct {
	// Dir is the store's own directory.
	Dir string
	// Registries are mirrors and credentials from the node file.
	Registries []registry.Host
	// Transport carries requests to registries; nil means the usual one.
	Transport http.RoundTripper
	// Hello is the path of the binary that skep/hello is made of; nil means
	// that there is no such image.
	Hello func() string
	// InUse tells the containers that use an image; nil means none. It is
	// called while names cannot change: it must not wait for this store.
	InUse func(imageID string) []User
	// Publish is told what happened; nil means nobody is.
	Publish func(events.Message)
	// Source is the images of other nodes; nil means that there are none.
	Source Source
	Limits layers.Limits // zero means the default
	Logger *slog.Logger  // nil means that nothing is logged
}

// Store is the image store. It is safe for concurrent use.
type Store struct {
	config   Config
	blobs    *content.Store
	layers   *layers.Store
	registry *registry.Client
	log      *slog.Logger

	state   atomic.Pointer[state]
	shelved atomic.Pointer[shelf]
	making  chan struct{} // size 1: held while a blob is made
	// write is held by whoever changes state, and by sweep.
	write sync.Mutex
}

// Rootfs is an image as a container needs it.
type Rootfs struct {
	// ID is the image's ID, sha256:….
	ID     string
	Config dockerspec.DockerOCIImageConfig
	// Lower are the directories of the layers, topmost first. An overlay's
	// root has the mode and owner of its upper directory: make that like
	// Lower[0].
	Lower   []string
	release func()
}

// Release ends the hold on the layers, which keeps them from being removed.
// Call it when InUse tells of the container, or when there will be none.
func (r Rootfs) Release() {
	if r.release != nil {
		r.release()
	}
}

// Open opens the store below c.Dir and wipes what a crash left unfinished.
func Open(c Config) (*Store, error) {
	if c.Limits == (layers.Limits{}) {
		c.Limits = layers.DefaultLimits()
	}
	if c.InUse == nil {
		c.InUse = func(string) []User { return nil }
	}
	if c.Publish == nil {
		c.Publish = func(events.Message) {}
	}
	if c.Hello == nil {
		c.Hello = func() string { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(c.Dir, "tmp")); err != nil {
		return nil, fmt.Errorf("wipe unfinished images: %w", err)
	}
	blobs, err := content.Open(c.Dir)
	if err != nil {
		return nil, err
	}
	unpacked, err := layers.Open(c.Dir, c.Limits)
	if err != nil {
		return nil, err
	}
	s := &Store{config: c, blobs: blobs, layers: unpacked, log: c.Logger, making: make(chan struct{}, 1)}
	s.registry = registry.New(registry.Config{Hosts: c.Registries, Transport: c.Transport})
	st, err := readState(s.statePath())
	if err != nil {
		return nil, err
	}
	s.state.Store(st)
	return s, nil
}

// Rootfs is the image that ref (a name, an ID or a prefix of one) means. It
// does not ask a registry; only skep/hello is made when it is not there.
func (s *Store) Rootfs(ctx context.Context, ref string) (Rootfs, error) {
	lease := s.blobs.Lease()
	rec, err := s.findOrMake(ctx, ref)
	if err != nil {
		lease.Release()
		return Rootfs{}, err
	}
	fs, err := s.rootfs(ctx, rec, lease)
	if err != nil {
		lease.Release()
		return Rootfs{}, err
	}
	return fs, nil
}

func (s *Store) rootfs(ctx context.Context, rec record, lease *content.Lease) (Rootfs, error) {
	img, err := s.open(rec)
	if err != nil {
		return Rootfs{}, err
	}
	lease.Hold(img.config.RootFS.DiffIDs...)
	lease.Hold(layers.CoverID(img.config.RootFS.DiffIDs))
	if err = s.heal(ctx, img); err != nil {
		return Rootfs{}, err
	}
	lower, err := s.layers.Chain(ctx, img.config.RootFS.DiffIDs)
	if err != nil {
		return Rootfs{}, err
	}
	return Rootfs{ID: rec.Config.String(), Config: img.config.Config, Lower: lower, release: lease.Release}, nil
}

// picture is an image's manifest and config, read and checked.
type picture struct {
	record
	manifest ocispec.Manifest
	config   dockerspec.DockerOCIImage
	size     int64 // of the config
}

// publish tells of an event of an image.
func (s *Store) publish(action events.Action, id, name string, labels map[string]string) {
	now := time.Now()
	attributes := map[string]string{"name": name}
	maps.Copy(attributes, labels)
	s.config.Publish(events.Message{
		Type: events.ImageEventType, Action: action,
		Actor: events.Actor{ID: id, Attributes: attributes},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
	})
}
