package doors

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
func mountRoot(root string, r *Root) error {
	opts := overlayOptions(r.Lower, r.Upper, r.Work)
	if len(opts) >= os.Getpagesize() {
		// mount(2) takes one page: the layers get short names.
		var short []string
		for _, l := range r.Lower {
			d, err := os.Open(l)
			if err != nil {
				return fmt.Errorf("mount root file system: %w", err)
			}
			defer d.Close()
			short = append(short, "/proc/self/fd/"+strconv.Itoa(int(d.Fd())))
		}
		opts = overlayOptions(short, r.Upper, r.Work)
	}
	if err := unix.Mount("overlay", root, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

func overlayOptions(lower []string, upper, work string) string {
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)
	var list []string
	for _, l := range lower {
		list = append(list, escape.Replace(l))
	}
	return "lowerdir=" + strings.Join(list, ":") + ",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work)
}

// secretsDir is mounted whole, so that it lists what is in it; files for other
// places are mounted one by one.
const secretsDir = "/run/secrets"

// placeFiles puts the files on a tmpfs that nothing but the container sees,
// and has them mounted read-only.
func placeFiles(r *Root) error {
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

func (c CopyUp) do(root string) error {
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
