package layers

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Whiteouts of the image format.
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// maxLinks is how many links a path may go through.
const maxLinks = 40

// adminAttr are attributes that steer an overlay; no image may set them.
const adminAttr = "SCHILY.xattr.trusted."

// policy decides what a layer may hold, turns whiteouts into the overlay's,
// and notes what the tar did not say. It runs in the thread whose root is the
// layer, so the paths it gets and uses start there.
type policy struct {
	limits  Limits
	entries int
	bytes   int64
	sparse  int64

	root      *tar.Header     // of the root directory itself
	described map[string]bool // directories with an entry
	needed    map[string]bool // directories that entries are in
	gone      map[string]bool // paths with a whiteout
}

// filter is asked about every entry, before anything of it is made.
func (p *policy) filter(h *tar.Header) (bool, error) {
	if p.entries++; p.entries > p.limits.Entries {
		return false, refuse("more than %d files", p.limits.Entries)
	}
	if p.bytes += h.Size; p.bytes > p.limits.Bytes || h.Size < 0 {
		return false, refuse("larger than %d bytes", p.limits.Bytes)
	}
	if Sparse(h) {
		if p.sparse += h.Size; p.sparse > p.limits.Free {
			return false, refuse("sparse files of more than %d bytes", p.limits.Free)
		}
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, adminAttr) {
			delete(h.PAXRecords, key)
		}
	}
	switch h.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		return false, refuse("%q is a device node, images may not hold any", h.Name)
	case tar.TypeXGlobalHeader:
		return false, nil
	}
	if h.Name == "." || h.Name == "/" {
		if h.Typeflag != tar.TypeDir {
			return false, refuse("%q is not a directory", h.Name)
		}
		p.root = h
		return false, nil
	}
	if err := checkName(h.Name); err != nil {
		return false, err
	}
	if h.Typeflag == tar.TypeLink {
		if climbs(strings.TrimLeft(h.Linkname, "/")) {
			return false, refuse("%q links to %q, outside of the layer", h.Name, h.Linkname)
		}
	}
	return true, nil
}

// checkName refuses names that mean something outside of the layer, and
// whiteouts of nothing or of it all. The name is clean.
func checkName(name string) error {
	if path.IsAbs(name) || climbs(name) {
		return refuse("%q is outside of the layer", name)
	}
	base := path.Base(name)
	if hidden, ok := strings.CutPrefix(base, whiteout); ok && base != whiteoutOpaque {
		if hidden == "" || hidden == "." || hidden == ".." {
			return refuse("%q hides no file", name)
		}
	}
	return nil
}

// climbs says whether a relative path leaves where it starts.
func climbs(name string) bool {
	clean := path.Clean(name)
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// Sparse says whether an entry is larger than its part of the tar.
func Sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// place is called with the path at which an entry is about to be made, its
// parents being there. It says whether to make it.
func (p *policy) place(h *tar.Header, at string) (bool, error) {
	if lexical := "/" + h.Name; at != lexical {
		if err := checkFollowed(h.Name); err != nil {
			return false, err
		}
	}
	p.note(h, at)
	dir, base := path.Split(at)
	if base == whiteoutOpaque {
		return false, unix.Setxattr(path.Clean(dir), opaqueAttr, []byte("y"), 0)
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		return false, p.hide(path.Join(dir, hidden))
	}
	return true, nil
}

// hide makes a whiteout. A layer that hides and has the same path means that
// what it has replaces what is below.
func (p *policy) hide(at string) error {
	if p.gone == nil {
		p.gone = map[string]bool{}
	}
	p.gone[at] = true
	if _, err := os.Lstat(at); err == nil {
		return nil
	}
	if err := unix.Mknod(at, unix.S_IFCHR, 0); err != nil {
		return &os.PathError{Op: "mknod", Path: at, Err: err}
	}
	return nil
}

// note keeps the directories that were described and those that were needed.
func (p *policy) note(h *tar.Header, at string) {
	if p.described == nil {
		p.described, p.needed = map[string]bool{}, map[string]bool{}
	}
	if h.Typeflag == tar.TypeDir {
		p.described[at] = true
	}
	for dir := path.Dir(at); dir != "/" && !p.needed[dir]; dir = path.Dir(dir) {
		p.needed[dir] = true
	}
}

// checkFollowed refuses to make a file through a link that is absolute or
// leads out of the layer. Other links to directories of the layer, such as lib
// for usr/lib, do no harm.
func checkFollowed(name string) error {
	var at []string // where we are, without links
	rest := strings.Split(path.Dir(name), "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return refuse("%q would be made through a link that leads out of the layer", name)
			}
			at = at[:len(at)-1]
			continue
		}
		here := "/" + path.Join(append(slices.Clone(at), part)...)
		fi, err := os.Lstat(here)
		if err != nil || fi.Mode()&fs.ModeSymlink == 0 {
			at = append(at, part)
			continue
		}
		target, err := os.Readlink(here)
		if err != nil {
			return err
		}
		if links++; path.IsAbs(target) || links > maxLinks {
			return refuse("%q would be made through the link %q to %q", name, here, target)
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return nil
}

// finish does what can only be done when everything is there.
func (p *policy) finish() error {
	for _, at := range slices.Sorted(maps.Keys(p.gone)) {
		if fi, err := os.Lstat(at); err == nil && fi.IsDir() {
			if err := unix.Setxattr(at, opaqueAttr, []byte("y"), 0); err != nil {
				return &os.PathError{Op: "setxattr", Path: at, Err: err}
			}
		}
	}
	if p.root == nil {
		return nil
	}
	if err := os.Lchown("/", p.root.Uid, p.root.Gid); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if err := os.Chmod("/", p.root.FileInfo().Mode()); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	return os.Chtimes("/", p.root.ModTime, p.root.ModTime)
}

// impliedDirs are the directories that no entry described, relative.
func (p *policy) impliedDirs() []string {
	var dirs []string
	if p.root == nil {
		dirs = append(dirs, ".")
	}
	for dir := range p.needed {
		if !p.described[dir] {
			dirs = append(dirs, strings.TrimPrefix(dir, "/"))
		}
	}
	slices.Sort(dirs)
	return dirs
}
