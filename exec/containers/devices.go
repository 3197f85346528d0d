package containers

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"skep/exec/runspec"
	"skep/store/object"
)

// devices looks up the node's devices that a container is to have; a directory
// stands for all devices in it.
func devices(list []container.DeviceMapping) (out []runspec.Device, err error) {
	for _, d := range list {
		access := cmp.Or(d.CgroupPermissions, "rwm")
		if strings.Trim(access, "rwm") != "" {
			return nil, invalid("invalid device mode: %s", access)
		}
		target := cmp.Or(d.PathInContainer, d.PathOnHost)
		if !path.IsAbs(target) {
			return nil, invalid("%s is not an absolute path", target)
		}
		found := 0
		err := filepath.WalkDir(d.PathOnHost, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			dev, ok, err := device(p)
			if err != nil || !ok {
				return err
			}
			found++
			dev.Path = path.Join(target, strings.TrimPrefix(p, path.Clean(d.PathOnHost)))
			out = append(out, runspec.Device{Node: dev, Access: access})
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) || err == nil && found == 0 {
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "error gathering device information while adding custom device %q: no such file or directory", d.PathOnHost)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func device(p string) (dev specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return dev, false, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		dev.Type = "c"
	case unix.S_IFBLK:
		dev.Type = "b"
	default:
		return dev, false, nil
	}
	dev.Major, dev.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	dev.FileMode = new(fs.FileMode(st.Mode & 0o777))
	dev.UID, dev.GID = &st.Uid, &st.Gid
	return dev, true, nil
}
