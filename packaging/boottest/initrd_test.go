package boottest_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// initrd writes the first file system of a machine: a cpio archive of the
// "newc" kind, not compressed, because the emulated processor would be slow to
// undo it.
type initrd struct {
	t     *testing.T
	file  *os.File
	w     *bufio.Writer
	size  int
	count int
	dirs  map[string]bool
}

func newInitrd(t *testing.T) *initrd {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	return &initrd{t: t, file: f, w: bufio.NewWriter(f), dirs: map[string]bool{".": true}}
}

// dir adds a directory and those above it.
func (i *initrd) dir(name string) {
	if !i.dirs[name] {
		i.dirs[name] = true
		i.dir(path.Dir(name))
		i.entry(name, unix.S_IFDIR|0o755, nil)
	}
}

// copy adds a file of this machine, executable as it is here.
func (i *initrd) copy(name, from string) {
	i.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		i.t.Fatal(err)
	}
	fi, err := os.Stat(from)
	if err != nil {
		i.t.Fatal(err)
	}
	i.dir(path.Dir(name))
	i.entry(name, unix.S_IFREG|uint32(fi.Mode()&fs.ModePerm), data)
}

func (i *initrd) link(name, to string) {
	i.dir(path.Dir(name))
	i.entry(name, unix.S_IFLNK|0o777, []byte(to))
}

func (i *initrd) entry(name string, mode uint32, data []byte) {
	i.count++
	// The numbers are inode, mode, owner, group, links, time, size, device and
	// the node's device (two each), the name's length with its NUL, no checksum.
	i.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		i.count, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	i.write([]byte(name + "\x00"))
	i.pad()
	i.write(data)
	i.pad()
}

func (i *initrd) pad() { i.write(make([]byte, -i.size&3)) }

// write leaves errors to the last Flush, which repeats them.
func (i *initrd) write(b []byte) {
	n, _ := i.w.Write(b)
	i.size += n
}

// finish returns the archive's path.
func (i *initrd) finish() string {
	i.t.Helper()
	i.entry("TRAILER!!!", 0, nil)
	if err := i.w.Flush(); err != nil {
		i.t.Fatal(err)
	}
	if err := i.file.Close(); err != nil {
		i.t.Fatal(err)
	}
	return i.file.Name()
}

// kernel is an unpacked kernel package.
type kernel struct{ image, modules string }

func findKernel(t *testing.T, root string) kernel {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("%d kernels in %s, want one (%v)", len(images), root, err)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return kernel{image: images[0], modules: filepath.Join(root, "lib", "modules", version)}
}

// files are the files of modules and of those that they need, in the order in
// which they load. What the kernel has built in needs no file.
func (k kernel) files(t *testing.T, names ...string) []string {
	t.Helper()
	needs := map[string][]string{}
	for line := range strings.Lines(k.read(t, "modules.dep")) {
		file, deps, _ := strings.Cut(line, ":")
		// The farthest dependency comes last.
		needs[moduleName(file)] = append(reversed(strings.Fields(deps)), file)
	}
	builtin := map[string]bool{}
	for line := range strings.Lines(k.read(t, "modules.builtin")) {
		builtin[moduleName(strings.TrimSpace(line))] = true
	}
	var list []string
	for _, name := range names {
		if needs[name] == nil && !builtin[name] {
			t.Fatalf("the kernel has no module %s", name)
		}
		for _, f := range needs[name] {
			if !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	for i, f := range list {
		list[i] = filepath.Join(k.modules, f)
	}
	return list
}

func (k kernel) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.modules, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func reversed(s []string) []string {
	slices.Reverse(s)
	return s
}
