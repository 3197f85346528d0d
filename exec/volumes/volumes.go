package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"skep/store/object"
)

// Config is what a Store needs.
type Config struct {
	// Dir holds one directory per volume.
	Dir string
	// Publish tells of volumes that come and go; nil tells nobody.
	Publish func(events.Message)
	Logger  *slog.Logger
}

// Anonymous is the label of volumes that nobody named.
const Anonymous = "com.docker.volume.anonymous"

const (
	noteFile = "volume.json"
	dataDir  = "_data"
)

// Store is the node's local volumes. Its methods may be called from any goroutine.
type Store struct {
	cfg Config

	mu   sync.Mutex
	vols map[string]*kept
}

type kept struct {
	note note
	// users are the IDs of the containers that were made with the volume.
	users map[string]bool
}

// note is what is written beside the data.
type note struct {
	Name            string
	Created         time.Time
	Labels, Options map[string]string `json:",omitempty"`
}

// Open finds the volumes in the directory.
func Open(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, vols: map[string]*kept{}}
	if err := os.MkdirAll(cfg.Dir, 0o701); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	for _, e := range entries {
		n, err := readNote(filepath.Join(cfg.Dir, e.Name(), noteFile))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It was being made or removed when the node stopped.
			if err = os.RemoveAll(filepath.Join(cfg.Dir, e.Name())); err != nil {
				return nil, fmt.Errorf("open volumes: %w", err)
			}
		case err != nil:
			cfg.Logger.Warn("left out volume", "volume", e.Name(), "err", err)
		default:
			s.vols[n.Name] = &kept{note: n, users: map[string]bool{}}
		}
	}
	return s, nil
}

func readNote(path string) (n note, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(b, &n)
}

// Path is where a volume's data is.
func (s *Store) Path(name string) string { return filepath.Join(s.cfg.Dir, name, dataDir) }

// Hold notes that a container uses a volume, which then is not removed.
func (s *Store) Hold(name, container string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vols[name]
	if v == nil {
		return noSuch(name)
	}
	v.users[container] = true
	return nil
}

// Release ends what Hold began.
func (s *Store) Release(name, container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[name]; v != nil {
		delete(v.users, container)
	}
}

// Create makes a volume, or finds the one of that name. Without a name it gets
// a random one.
func (s *Store) Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error) {
	n := note{Name: req.Name, Created: time.Now().UTC().Truncate(time.Second), Labels: maps.Clone(req.Labels), Options: req.DriverOpts}
	if err := check(&req); err != nil {
		return volume.Volume{}, err
	}
	if n.Name == "" {
		n.Name = randomName()
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[Anonymous] = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[n.Name]; v != nil {
		return s.show(v), nil
	}
	if err := s.make(n); err != nil {
		return volume.Volume{}, fmt.Errorf("create volume %s: %w", n.Name, err)
	}
	v := &kept{note: n, users: map[string]bool{}}
	s.vols[n.Name] = v
	s.tell(events.ActionCreate, n.Name)
	return s.show(v), ctx.Err()
}

func check(req *volume.CreateRequest) error {
	if req.Driver != "" && req.Driver != "local" {
		return object.Errorf(errdefs.ErrNotFound, "plugin %q not found", req.Driver)
	}
	if req.ClusterVolumeSpec != nil {
		return object.Errorf(errdefs.ErrNotImplemented, "cluster volumes are not supported by this node")
	}
	if len(req.DriverOpts) > 0 {
		return object.Errorf(errdefs.ErrNotImplemented, "options of the local volume driver are not supported by this node")
	}
	if req.Name != "" && !valid(req.Name) {
		return object.Errorf(errdefs.ErrInvalidArgument, "create %[1]s: %[1]q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", req.Name)
	}
	return nil
}

func valid(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return len(name) >= 2 && len(name) <= 255
}

// make writes the note last: a directory without one is a leftover.
func (s *Store) make(n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.cfg.Dir, n.Name)
	if err := os.MkdirAll(filepath.Join(dir, dataDir), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".note")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, noteFile))
}

// List is all volumes, by name.
func (s *Store) List(ctx context.Context, size bool) ([]volume.Volume, error) {
	s.mu.Lock()
	list := make([]volume.Volume, 0, len(s.vols))
	for _, v := range s.vols {
		list = append(list, s.show(v))
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	if !size {
		return list, nil
	}
	for i := range list {
		n, err := diskUsage(ctx, list[i].Mountpoint)
		if err != nil {
			return nil, fmt.Errorf("measure volume %s: %w", list[i].Name, err)
		}
		list[i].UsageData = &volume.UsageData{RefCount: int64(s.users(list[i].Name)), Size: n}
	}
	return list, nil
}

// Inspect is one volume.
func (s *Store) Inspect(_ context.Context, name string) (volume.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vols[name]
	if v == nil {
		return volume.Volume{}, noSuch(name)
	}
	return s.show(v), nil
}

func (s *Store) users(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[name]; v != nil {
		return len(v.users)
	}
	return 0
}

func (s *Store) show(v *kept) volume.Volume {
	return volume.Volume{
		Name: v.note.Name, Driver: "local", Scope: "local",
		Mountpoint: s.Path(v.note.Name), CreatedAt: v.note.Created.Format(time.RFC3339),
		Labels: maps.Clone(v.note.Labels), Options: maps.Clone(v.note.Options),
	}
}

func (s *Store) tell(action events.Action, name string) {
	if s.cfg.Publish == nil {
		return
	}
	now := time.Now()
	s.cfg.Publish(events.Message{
		Type: events.VolumeEventType, Action: action, Scope: "local",
		Actor: events.Actor{ID: name, Attributes: map[string]string{"driver": "local"}},
		Time:  now.Unix(), TimeNano: now.UnixNano(),
	})
}

func noSuch(name string) error {
	return object.Errorf(errdefs.ErrNotFound, "get %s: no such volume", name)
}
