package layers_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skep/exec/layers"
)

// mount is the layers as a container sees them.
func mount(t *testing.T, s *layers.Store, ids ...digest.Digest) string {
	t.Helper()
	lower, err := s.Chain(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	for _, d := range []string{"upper", "work", "merged"} {
		if err = os.Mkdir(filepath.Join(work, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(work, "merged")
	// An overlay's root is the upper directory's, so a container's is made like
	// the topmost layer's.
	if err = unix.Chmod(filepath.Join(work, "upper"), stat(t, lower[0]).Mode&0o7777); err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", strings.Join(lower, ":"), work, work)
	err = unix.Mount("overlay", merged, "overlay", 0, data)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		t.Skipf("overlay mount: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func TestMount_ShowsWhatTheLayersSay(t *testing.T) {
	s, _ := store(t, layers.DefaultLimits())
	caps := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // cap_net_bind_service
	bottom := tarOf(t,
		dir("./", 0o711), dir("gone", 0o755), file{name: "gone/f"}, dir("opaque", 0o755), file{name: "opaque/old"},
		dir("replaced", 0o755), file{name: "replaced/old"}, dir("kept", 0o750), file{name: "kept/f"},
		file{name: "kept/removed"}, file{name: "later", body: "1"}, dir("tmp", 0o1777),
	)
	top := tarOf(t,
		file{name: ".wh.gone"}, dir("opaque", 0o755), file{name: "opaque/.wh..wh..opq"}, file{name: "opaque/new"},
		file{name: ".wh.replaced"}, dir("replaced", 0o755), file{name: "replaced/new"},
		file{name: "kept/.wh.removed"}, file{name: "tmp/f"},
		file{name: "suid", mode: 0o4755, uid: 1234}, file{name: "hard1", body: "same"},
		file{name: "hard2", typ: tar.TypeLink, link: "hard1"}, file{name: "fifo", typ: tar.TypeFifo},
		symlink("abs", "/etc/passwd"), symlink("lib", "usr/lib"), dir("usr/lib", 0o755), file{name: "lib/inside"},
		file{name: "caps", pax: map[string]string{"SCHILY.xattr.security.capability": caps, "SCHILY.xattr.user.note": "n"}},
		file{name: "evil", pax: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y"}},
		file{name: "later", body: "2"},
	)
	m := mount(t, s, unpack(t, s, bottom), unpack(t, s, top))
	for name, there := range map[string]bool{
		"gone": false, "opaque/old": false, "opaque/new": true, "replaced/old": false, "replaced/new": true,
		"kept/f": true, "kept/removed": false, "tmp/f": true, "usr/lib/inside": true, "fifo": true,
	} {
		if _, err := os.Lstat(filepath.Join(m, name)); (err == nil) != there {
			t.Errorf("%s: there is %v, want %v", name, err == nil, there)
		}
	}
	for name, want := range map[string]uint32{".": 0o40711, "suid": 0o104755, "tmp": 0o41777, "kept": 0o40750, "fifo": 0o10644, "replaced": 0o40755} {
		if got := stat(t, filepath.Join(m, name)).Mode; got != want {
			t.Errorf("mode of %s is %o, want %o", name, got, want)
		}
	}
	if uid := stat(t, filepath.Join(m, "suid")).Uid; uid != 1234 {
		t.Errorf("owner %d", uid)
	}
	if a, b := stat(t, filepath.Join(m, "hard1")), stat(t, filepath.Join(m, "hard2")); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard links: inodes %d %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
	if to, err := os.Readlink(filepath.Join(m, "abs")); err != nil || to != "/etc/passwd" {
		t.Errorf("link to %q, %v", to, err)
	}
	buf := make([]byte, 64)
	for attr, want := range map[string]string{"security.capability": caps, "user.note": "n"} {
		if n, err := unix.Lgetxattr(filepath.Join(m, "caps"), attr, buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%s is %q, %v", attr, buf[:max(n, 0)], err)
		}
	}
	if n, err := unix.Lgetxattr(filepath.Join(s.Path(digest.FromBytes(top)), "evil"), "trusted.overlay.redirect", buf); err == nil {
		t.Errorf("the image set an attribute of the overlay: %q", buf[:n])
	}
	if b, err := os.ReadFile(filepath.Join(m, "later")); err != nil || string(b) != "2" {
		t.Errorf("later holds %q, %v", b, err)
	}
}

func TestChain_CoversDirectoriesThatALayerOnlyImplies(t *testing.T) {
	s, _ := store(t, layers.DefaultLimits())
	base := unpack(t, s, tarOf(t, dir("tmp", 0o1777), dir("home", 0o755), file{name: "home/me", typ: tar.TypeDir, mode: 0o700, uid: 7}))
	plain := unpack(t, s, tarOf(t, dir("home", 0o755), file{name: "home/x"}))
	implied := unpack(t, s, tarOf(t, file{name: "tmp/f"}, file{name: "home/me/f"}))
	hidden := unpack(t, s, tarOf(t, file{name: ".wh.tmp"}, file{name: "home/.wh.me"}))
	for _, tt := range []struct {
		name    string
		chain   []digest.Digest
		tmp, me uint32
		dirs    int
		owner   uint32
	}{
		{"nothing implied", []digest.Digest{base, plain}, 0o41777, 0o40700, 2, 7},
		{"implied", []digest.Digest{base, plain, implied}, 0o41777, 0o40700, 4, 7},
		{"hidden before", []digest.Digest{base, hidden, implied}, 0o40755, 0o40755, 3, 0},
		{"hidden after", []digest.Digest{base, implied, hidden, implied}, 0o40755, 0o40755, 3, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lower, err := s.Chain(t.Context(), tt.chain)
			if err != nil || len(lower) != tt.dirs {
				t.Fatalf("%d directories, %v, want %d", len(lower), err, tt.dirs)
			}
			m := mount(t, s, tt.chain...)
			if got := stat(t, filepath.Join(m, "tmp")).Mode; got != tt.tmp {
				t.Errorf("mode of tmp is %o, want %o", got, tt.tmp)
			}
			if got := stat(t, filepath.Join(m, "home/me")); got.Mode != tt.me || got.Uid != tt.owner {
				t.Errorf("home/me is %o of %d, want %o of %d", got.Mode, got.Uid, tt.me, tt.owner)
			}
		})
	}
}
