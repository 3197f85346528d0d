package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"skep/exec/runspec"
	"skep/store/object"
)

func invalid(format string, args ...any) error {
	return object.Errorf(errdefs.ErrInvalidArgument, format, args...)
}

// places resolves everything that a container wants mounted. Volumes that do
// not exist are made.
func (e *Engine) places(ctx context.Context, cfg *container.Config, host *container.HostConfig) (list []place, err error) {
	add := func(p place, err error) error {
		if err != nil {
			return err
		}
		target := path.Clean(p.Mount.Target)
		if target == "/" {
			return invalid("invalid specification: destination can't be '/'")
		}
		if slices.ContainsFunc(list, func(o place) bool { return path.Clean(o.Mount.Target) == target }) {
			return invalid("Duplicate mount point: %s", target)
		}
		list = append(list, p)
		return nil
	}
	for _, b := range host.Binds {
		if err := add(e.bind(ctx, b)); err != nil {
			return list, err
		}
	}
	for i := range host.Mounts {
		if err := add(e.mount(ctx, &host.Mounts[i])); err != nil {
			return list, err
		}
	}
	for target, opts := range host.Tmpfs {
		if !path.IsAbs(target) {
			return list, invalid("invalid mount path: '%s' mount path must be absolute", target)
		}
		m := runspec.Mount{Tmpfs: true, Target: target, Options: tmpfsOptions(opts)}
		if err := add(place{Mount: m, Hidden: true}, nil); err != nil {
			return list, err
		}
	}
	for target := range cfg.Volumes {
		covered := slices.ContainsFunc(list, func(o place) bool { return path.Clean(o.Mount.Target) == path.Clean(target) })
		if covered {
			continue
		}
		if !path.IsAbs(target) {
			return list, invalid("invalid mount path: '%s' mount path must be absolute", target)
		}
		if err := add(e.volume(ctx, "", target, nil, false, false)); err != nil {
			return list, err
		}
	}
	return list, nil
}

// bind reads "source:target[:options]"; a source without a slash is a volume.
func (e *Engine) bind(ctx context.Context, text string) (place, error) {
	f := strings.Split(text, ":")
	if len(f) < 2 || len(f) > 3 || f[0] == "" {
		return place{}, invalid("invalid volume specification: '%s'", text)
	}
	source, target := f[0], f[1]
	if !path.IsAbs(target) {
		return place{}, invalid("invalid volume specification: '%s': invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", text, kindOf(source), target)
	}
	readOnly, noCopy, mode := false, false, ""
	var opts []string
	if len(f) == 3 {
		mode = f[2]
		for o := range strings.SplitSeq(mode, ",") {
			switch o {
			case "ro":
				readOnly = true
			case "nocopy":
				noCopy = true
			case "rw", "z", "Z", "consistent", "cached", "delegated", "":
			default:
				if !slices.Contains(mount.Propagations, mount.Propagation(o)) {
					return place{}, invalid("invalid mode: %s", mode)
				}
				opts = append(opts, o)
			}
		}
	}
	if kindOf(source) == mount.TypeVolume {
		p, err := e.volume(ctx, source, target, nil, readOnly, noCopy)
		p.Point.Mode = mode
		return p, err
	}
	// As Docker does: the directory is made, a mistake in the path or not.
	if err := os.MkdirAll(source, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, e := os.Stat(source); e != nil {
			return place{}, fmt.Errorf("error while creating mount source path '%s': %w", source, err)
		}
	}
	p, err := bound(source, target, readOnly, opts)
	p.Point.Mode = mode
	return p, err
}

func kindOf(source string) mount.Type {
	if path.IsAbs(source) {
		return mount.TypeBind
	}
	return mount.TypeVolume
}

func bound(source, target string, readOnly bool, opts []string) (place, error) {
	for _, o := range opts {
		if o == "shared" || o == "rshared" {
			return place{}, object.Errorf(errdefs.ErrNotImplemented, "mount propagation %s is not supported by this node: a container's mounts are its own", o)
		}
	}
	spread := mount.PropagationRPrivate
	for _, o := range opts {
		if slices.Contains(mount.Propagations, mount.Propagation(o)) {
			spread = mount.Propagation(o)
		}
	}
	return place{
		Point: container.MountPoint{Type: mount.TypeBind, Source: source, Destination: path.Clean(target), RW: !readOnly, Propagation: spread},
		Mount: runspec.Mount{Source: source, Target: target, ReadOnly: readOnly, Options: opts},
	}, nil
}

func (e *Engine) volume(ctx context.Context, name, target string, labels map[string]string, readOnly, noCopy bool) (place, error) {
	v, err := e.cfg.Volumes.Create(ctx, volume.CreateRequest{Name: name, Labels: labels})
	if err != nil {
		return place{}, err
	}
	return place{
		Point: container.MountPoint{
			Type: mount.TypeVolume, Name: v.Name, Source: v.Mountpoint, Destination: path.Clean(target),
			Driver: "local", Mode: "", RW: !readOnly,
		},
		Mount:  runspec.Mount{Source: v.Mountpoint, Target: target, ReadOnly: readOnly},
		Volume: v.Name, Fill: !noCopy && !readOnly, Anonymous: name == "",
	}, nil
}

// mount reads the long form.
func (e *Engine) mount(ctx context.Context, m *mount.Mount) (place, error) {
	bad := func(format string, args ...any) (place, error) {
		return place{}, invalid("invalid mount config for type %q: "+format, append([]any{m.Type}, args...)...)
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	if !path.IsAbs(m.Target) {
		return bad("invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	switch m.Type {
	case mount.TypeBind:
		return bindMount(m, bad)
	case mount.TypeVolume:
		return e.volumeMount(ctx, m, bad)
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		return place{
			Point: container.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(m.Target), RW: !m.ReadOnly},
			Mount: runspec.Mount{Tmpfs: true, Target: m.Target, ReadOnly: m.ReadOnly, Options: longTmpfs(m.TmpfsOptions)},
		}, nil
	default:
		return place{}, invalid("mount type unknown: %q", m.Type)
	}
}

func bindMount(m *mount.Mount, bad func(string, ...any) (place, error)) (place, error) {
	if m.Source == "" {
		return bad("field Source must not be empty")
	}
	if !path.IsAbs(m.Source) {
		return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	var opts []string
	if o := m.BindOptions; o != nil {
		if o.Propagation != "" {
			opts = append(opts, string(o.Propagation))
		}
		if o.NonRecursive {
			opts = append(opts, "bind")
		}
		if o.CreateMountpoint {
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return place{}, fmt.Errorf("make mount source: %w", err)
			}
		}
	}
	if _, err := os.Stat(m.Source); err != nil {
		return bad("bind source path does not exist: %s", m.Source)
	}
	return bound(m.Source, m.Target, m.ReadOnly, opts)
}

func (e *Engine) volumeMount(ctx context.Context, m *mount.Mount, bad func(string, ...any) (place, error)) (place, error) {
	if path.IsAbs(m.Source) {
		return bad("%q includes invalid characters for a local volume name", m.Source)
	}
	var o mount.VolumeOptions
	if m.VolumeOptions != nil {
		o = *m.VolumeOptions
	}
	if o.DriverConfig != nil && o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" {
		return place{}, object.Errorf(errdefs.ErrNotFound, "plugin %q not found", o.DriverConfig.Name)
	}
	if o.Subpath != "" {
		return place{}, object.Errorf(errdefs.ErrNotImplemented, "a part of a volume cannot be mounted by this node yet")
	}
	return e.volume(ctx, m.Source, m.Target, o.Labels, m.ReadOnly, o.NoCopy)
}

func tmpfsOptions(text string) []string {
	opts := []string{"noexec", "nosuid", "nodev"}
	for o := range strings.SplitSeq(text, ",") {
		if o == "" {
			continue
		}
		opts = slices.DeleteFunc(opts, func(d string) bool { return d == "no"+o })
		if !slices.Contains(opts, o) {
			opts = append(opts, o)
		}
	}
	return opts
}

func longTmpfs(o *mount.TmpfsOptions) []string {
	opts := []string{"noexec", "nosuid", "nodev"}
	if o == nil {
		return opts
	}
	if o.SizeBytes > 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		opts = append(opts, "mode="+strconv.FormatUint(uint64(o.Mode), 8))
	}
	for _, pair := range o.Options {
		opt := strings.Join(pair, "=")
		opts = slices.DeleteFunc(opts, func(d string) bool { return d == "no"+opt })
		opts = append(opts, opt)
	}
	return opts
}
