package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	cfs "github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountRoot mounts the image's layers and the writable one at root.
func mountRoot(root string, r *rootJob) error {
	err := mountLayers(root, r)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A kernel without lowerdir+, or paths too long for it: all in one
		// page then.
		escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)
		var lower []string
		for _, l := range r.Lower {
			lower = append(lower, escape.Replace(l))
		}
		err = unix.Mount("overlay", root, "overlay", 0, "lowerdir="+strings.Join(lower, ":")+
			",upperdir="+escape.Replace(r.Upper)+",workdir="+escape.Replace(r.Work))
	}
	if err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

func mountLayers(root string, r *rootJob) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fsfd)
	if err = unix.FsconfigSetString(fsfd, "source", "overlay"); err != nil {
		return err
	}
	for _, l := range r.Lower {
		if err = unix.FsconfigSetString(fsfd, "lowerdir+", l); err != nil {
			return err
		}
	}
	if err = unix.FsconfigSetString(fsfd, "upperdir", r.Upper); err != nil {
		return err
	}
	if err = unix.FsconfigSetString(fsfd, "workdir", r.Work); err != nil {
		return err
	}
	if err = unix.FsconfigCreate(fsfd); err != nil {
		return err
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// secretsDir is mounted whole, so that it lists what is in it; files for other
// places are mounted one by one.
const secretsDir = "/run/secrets"

// placeFiles puts the files on a tmpfs that nothing but the container sees,
// and has them mounted read-only.
func placeFiles(r *rootJob) error {
	if len(r.Files) == 0 {
		return nil
	}
	if err := unix.Mount("tmpfs", r.FilesDir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
		return fmt.Errorf("mount files: %w", err)
	}
	secrets := filepath.Join(r.FilesDir, "secrets")
	if err := os.Mkdir(secrets, 0o755); err != nil {
		return fmt.Errorf("place files: %w", err)
	}
	used := false
	for i, f := range r.Files {
		target := path.Clean(f.Target)
		at := filepath.Join(r.FilesDir, strconv.Itoa(i))
		if path.Dir(target) == secretsDir {
			at, used = filepath.Join(secrets, path.Base(target)), true
		} else {
			r.Spec.Mounts = append(r.Spec.Mounts, readOnly(at, target))
		}
		if err := f.write(at); err != nil {
			return fmt.Errorf("place file %s: %w", f.Target, err)
		}
	}
	if used {
		r.Spec.Mounts = append(r.Spec.Mounts, readOnly(secrets, secretsDir))
	}
	return nil
}

func readOnly(source, target string) specs.Mount {
	return specs.Mount{
		Destination: target, Type: "bind", Source: source,
		Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"},
	}
}

func (f *File) write(at string) error {
	if err := os.WriteFile(at, f.Data, 0o400); err != nil {
		return err
	}
	return errors.Join(os.Chown(at, f.UID, f.GID), os.Chmod(at, f.Mode.Perm()))
}

// copyUp fills a new volume with what the image has at its place.
type copyUp struct {
	Volume string // directory on the node
	Target string // path in the container
}

func (c copyUp) do(root string) error {
	if empty, err := isEmpty(c.Volume); err != nil || !empty {
		return err
	}
	r, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("fill volume: %w", err)
	}
	defer r.Close()
	src, err := openIn(r, c.Target, unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fill volume: %w", err)
	}
	defer src.Close()
	if err := cfs.CopyDir(c.Volume, "/proc/self/fd/"+strconv.Itoa(int(src.Fd()))+"/."); err != nil {
		return fmt.Errorf("fill volume from %s: %w", c.Target, err)
	}
	return nil
}

func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("look into volume: %w", err)
	}
	return len(entries) == 0, nil
}
