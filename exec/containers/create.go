package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"skep/exec/runspec"
	"skep/store/object"
)

// Create makes a container.
func (e *Engine) Create(ctx context.Context, name string, req container.CreateRequest) (container.CreateResponse, error) {
	return e.CreateWith(ctx, name, req, Extra{})
}

// CreateWith makes a container that has more than the Engine API can say.
func (e *Engine) CreateWith(ctx context.Context, name string, req container.CreateRequest, x Extra) (_ container.CreateResponse, err error) {
	if req.Config == nil {
		return container.CreateResponse{}, invalid("config cannot be empty in order to create a container")
	}
	r := record{ID: newID(), Created: time.Now().UTC(), Network: req.NetworkingConfig, Extra: x}
	if req.HostConfig != nil {
		r.Host = *req.HostConfig
	}
	if err = e.check(&r, name); err != nil {
		return container.CreateResponse{}, err
	}
	rootfs, err := e.cfg.Images.Rootfs(ctx, req.Image)
	if err != nil {
		return container.CreateResponse{}, err
	}
	defer rootfs.Release()
	r.ImageID = rootfs.ID
	if r.Config, err = runspec.Merge(*req.Config, rootfs.Config); err != nil {
		return container.CreateResponse{}, err
	}
	if r.Config.Hostname == "" && !r.Host.UTSMode.IsHost() {
		r.Config.Hostname = runspec.Hostname(r.ID, &r.Config)
	}
	if r.Name, err = e.claim(strings.TrimPrefix(name, "/"), r.ID); err != nil {
		return container.CreateResponse{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.forget(&r))
		}
	}()
	warnings, err := e.make(ctx, &r)
	if err != nil {
		return container.CreateResponse{}, err
	}
	if err := likeTop(filepath.Join(e.dir(r.ID), "upper"), rootfs.Lower); err != nil {
		return container.CreateResponse{}, err
	}
	c := newInstance(r, status{})
	e.mu.Lock()
	e.byID[r.ID] = c
	e.mu.Unlock()
	e.tell(c, events.ActionCreate)
	if warnings == nil {
		warnings = []string{}
	}
	return container.CreateResponse{ID: r.ID, Warnings: warnings}, nil
}

// check refuses what can be told to be wrong from the request alone.
func (e *Engine) check(r *record, name string) error {
	h := &r.Host
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("%w", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	if name != "" && !validName(strings.TrimPrefix(name, "/")) {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if _, err := logging(&h.LogConfig); err != nil {
		return err
	}
	for _, f := range r.Extra.Files {
		if !filepath.IsAbs(f.Target) {
			return invalid("invalid file target, must be an absolute path: %s", f.Target)
		}
	}
	if h.Privileged {
		return object.Errorf(errdefs.ErrNotImplemented, "privileged containers are not supported by this node")
	}
	if h.NetworkMode.IsDefault() || h.NetworkMode == "" {
		h.NetworkMode = "bridge"
	}
	if _, err := e.network(h.NetworkMode); err != nil {
		return err
	}
	return e.checkGuests(r)
}

func validName(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return len(name) >= 2
}

// claim reserves a name; an empty one becomes a random one.
func (e *Engine) claim(name, id string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for try := 0; name == ""; try++ {
		if n := object.RandomName(try); e.names[n] == "" {
			name = n
		}
	}
	if other := e.names[name]; other != "" {
		return "", object.Errorf(errdefs.ErrConflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	e.names[name] = id
	return name, nil
}

// make makes a container's directories and volumes, and writes it down.
func (e *Engine) make(ctx context.Context, r *record) (warnings []string, err error) {
	if r.Mounts, err = e.places(ctx, &r.Config, &r.Host); err != nil {
		return nil, err
	}
	if r.Devices, err = devices(r.Host.Devices); err != nil {
		return nil, err
	}
	for _, m := range r.Mounts {
		if m.Volume == "" {
			continue
		}
		if err = e.cfg.Volumes.Hold(m.Volume, r.ID); err != nil {
			return nil, err
		}
	}
	// What cannot be specified is refused now and not at the start.
	if _, warnings, err = runspec.Generate(e.input(r, "")); err != nil {
		return nil, err
	}
	if err := os.Mkdir(e.dir(r.ID), 0o710); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	for _, d := range []string{"upper", "work", "lower", "rootfs", "logs"} {
		if err := os.Mkdir(filepath.Join(e.dir(r.ID), d), 0o755); err != nil {
			return nil, fmt.Errorf("create container: %w", err)
		}
	}
	return warnings, e.saveRecord(r)
}

// likeTop gives the writable layer the mode and owner of the topmost one of the
// image: an overlay shows those of the first as its root's.
func likeTop(upper string, lower []string) error {
	if len(lower) == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(lower[0], &st); err != nil {
		return fmt.Errorf("look at image: %w", err)
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// forget undoes what creating a container left: name, volumes, directories.
func (e *Engine) forget(r *record) error {
	for _, m := range r.Mounts {
		if m.Volume != "" {
			e.cfg.Volumes.Release(m.Volume, r.ID)
		}
	}
	err := os.RemoveAll(e.dir(r.ID))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.names[r.Name] == r.ID {
		delete(e.names, r.Name)
	}
	delete(e.byID, r.ID)
	return err
}

// input is what the container's specification is made from.
func (e *Engine) input(r *record, netns string) *runspec.Input {
	in := &runspec.Input{
		ID: r.ID, Config: r.Config, Host: r.Host, Machine: e.machine,
		Place: runspec.Place{
			Rootfs: filepath.Join(e.dir(r.ID), "rootfs"), Netns: netns, Cgroup: e.cgroup(r.ID), Init: e.cfg.Exe,
			Hostname: filepath.Join(e.dir(r.ID), "hostname"), Hosts: filepath.Join(e.dir(r.ID), "hosts"),
			Resolv: filepath.Join(e.dir(r.ID), "resolv.conf"),
		},
	}
	in.Place.Devices = r.Devices
	for _, m := range r.Mounts {
		in.Place.Mounts = append(in.Place.Mounts, m.Mount)
	}
	return in
}
