package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Some tars hold files without their directories. Unpacked apart, such a layer
// has directories of mode 0755 owned by root, and on top of an overlay they
// would hide the mode and owner that a layer below gave them: a /tmp that is no
// longer sticky. A chain of layers with that trouble gets a cover: one more
// layer on top that holds only those directories, as they should be.

// Chain is the directories of an unpacked image, topmost first; diffIDs are
// bottom first. A layer that occurs again counts where it is topmost: it says
// there all that it said below, and an overlay takes no directory twice.
func (s *Store) Chain(ctx context.Context, diffIDs []digest.Digest) ([]string, error) {
	diffIDs = dedupe(diffIDs)
	lower := make([]string, 0, len(diffIDs)+1)
	for _, d := range diffIDs {
		lower = append(lower, s.Path(d))
	}
	covered, err := s.cover(ctx, diffIDs, lower)
	if err != nil {
		return nil, err
	}
	if covered {
		lower = append(lower, s.Path(CoverID(diffIDs)))
	}
	slices.Reverse(lower)
	return lower, nil
}

// cover makes the cover of a chain if it needs one, and says whether it does.
func (s *Store) cover(ctx context.Context, diffIDs []digest.Digest, roots []string) (bool, error) {
	id := CoverID(diffIDs)
	s.mu.Lock()
	bare := s.bare[id]
	s.mu.Unlock()
	if bare || s.Has(id) {
		return !bare, nil
	}
	infos := make([]Info, len(diffIDs))
	for i, d := range diffIDs {
		var err error
		if infos[i], err = s.Info(d); err != nil {
			return false, err
		}
	}
	c := newChain(roots, infos)
	wrong, err := c.wrong()
	if err != nil {
		return false, fmt.Errorf("compare directories: %w", err)
	}
	if len(wrong) == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bare[id] = true
		return false, nil
	}
	err = s.Make(ctx, id, func(root string) (Info, error) { return Info{}, c.cover(root, wrong) })
	if err != nil {
		return false, fmt.Errorf("cover directories: %w", err)
	}
	return true, nil
}

// CoverID is where the cover of a chain is kept, if it needs one.
func CoverID(diffIDs []digest.Digest) digest.Digest {
	diffIDs = dedupe(diffIDs)
	var b strings.Builder
	b.WriteString("cover")
	for _, d := range diffIDs {
		b.WriteString("\n" + d.String())
	}
	return digest.FromString(b.String())
}

// dedupe keeps the last of each.
func dedupe(ds []digest.Digest) []digest.Digest {
	seen := map[digest.Digest]bool{}
	var kept []digest.Digest
	for _, d := range slices.Backward(ds) {
		if !seen[d] {
			seen[d] = true
			kept = append(kept, d)
		}
	}
	slices.Reverse(kept)
	return kept
}

// chain is layers of one image, bottom first.
type chain struct {
	roots   []string
	implied []map[string]bool
}

func newChain(roots []string, infos []Info) chain {
	c := chain{roots: slices.Clone(roots)}
	for _, info := range infos {
		set := map[string]bool{}
		for _, dir := range info.Implied {
			set[path.Clean(dir)] = true
		}
		c.implied = append(c.implied, set)
	}
	return c
}

// wrong are the directories whose topmost layer only implies them while one
// below says something else than the default.
func (c chain) wrong() ([]string, error) {
	seen := map[string]bool{}
	for i := 1; i < len(c.implied); i++ {
		for dir := range c.implied[i] {
			seen[dir] = true
		}
	}
	var wrong []string
	for dir := range seen {
		from, explicit, err := c.source(dir)
		if err != nil {
			return nil, err
		}
		if !explicit {
			continue
		}
		plain, err := plainDir(from)
		if err != nil {
			return nil, err
		}
		if !plain {
			wrong = append(wrong, dir)
		}
	}
	slices.Sort(wrong)
	return wrong, nil
}

// source is the directory whose metadata dir has in the image: the topmost
// that its layer describes, or else the topmost.
func (c chain) source(dir string) (from string, explicit bool, err error) {
	for i, v := range slices.Backward(c.roots) {
		here, hidden, err := look(v, dir)
		if err != nil {
			return "", false, err
		}
		if here {
			p := filepath.Join(v, dir)
			if !c.implied[i][dir] {
				return p, true, nil
			}
			if from == "" {
				from = p
			}
		}
		if hidden {
			break
		}
	}
	return from, false, nil
}

// look says whether a layer has the directory, and whether it hides what the
// layers below have of it. No link is followed: a parent that is one hides.
func look(root, dir string) (here, hidden bool, err error) {
	p := root
	for _, name := range append([]string{"."}, strings.Split(dir, "/")...) {
		p = filepath.Join(p, name)
		fi, err := os.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return false, hidden, nil
		}
		if err != nil {
			return false, false, err
		}
		if !fi.IsDir() {
			return false, true, nil
		}
		if opaque(p) {
			hidden = true
		}
	}
	return true, hidden, nil
}

// cover makes the directories and their parents below root.
func (c chain) cover(root string, dirs []string) error {
	need := map[string]bool{".": true}
	for _, dir := range dirs {
		for ; dir != "."; dir = path.Dir(dir) {
			need[dir] = true
		}
	}
	var order []string
	for dir := range need {
		order = append(order, dir)
	}
	slices.Sort(order) // parents first
	for _, dir := range order {
		p := filepath.Join(root, dir)
		if dir != "." {
			if err := os.Mkdir(p, 0o755); err != nil {
				return err
			}
		}
		from, _, err := c.source(dir)
		if err != nil {
			return err
		}
		if from == "" {
			continue
		}
		if err := copyMeta(from, p); err != nil {
			return err
		}
	}
	return nil
}

// plainDir says whether a directory is as an implied one would be.
func plainDir(p string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", p, err)
	}
	names, err := xattrs(p)
	return st.Mode&0o7777 == 0o755 && st.Uid == 0 && st.Gid == 0 && len(names) == 0, err
}

// copyMeta gives a directory the owner, mode and attributes of another.
func copyMeta(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	names, err := xattrs(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := xattr(from, name)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, name, value, 0); err != nil {
			return err
		}
	}
	return nil
}

// xattrs are the attributes of a file that are the image's, not the overlay's.
func xattrs(p string) ([]string, error) {
	n, err := unix.Llistxattr(p, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	if n, err = unix.Llistxattr(p, buf); err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name != "" && !strings.HasPrefix(name, "trusted.overlay.") && name != "security.selinux" {
			names = append(names, name)
		}
	}
	return names, nil
}

func xattr(p, name string) ([]byte, error) {
	n, err := unix.Lgetxattr(p, name, nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = unix.Lgetxattr(p, name, buf)
	return buf[:max(n, 0)], err
}

// opaque says whether a directory hides the same one below.
func opaque(dir string) bool {
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(dir, opaqueAttr, buf)
	return err == nil && string(buf[:n]) == "y"
}

// opaqueAttr marks a directory of an overlay that is not merged with those below.
const opaqueAttr = "trusted.overlay.opaque"
