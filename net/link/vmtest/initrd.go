// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Initrd writes the first file system of a machine: a cpio archive of the
// "newc" kind, not compressed, because the emulated processor would be slow to
// undo it.
type Initrd struct {
	t     *testing.T
	file  *os.File
	w     *bufio.Writer
	size  int
	count int
	dirs  map[string]bool
	files map[string]bool // those of programs
}

// NewInitrd begins one. It ends with the test.
func NewInitrd(t *testing.T) *Initrd {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	return &Initrd{t: t, file: f, w: bufio.NewWriter(f), dirs: map[string]bool{".": true}, files: map[string]bool{}}
}

// Dir adds a directory and those above it.
func (i *Initrd) Dir(name string) {
	if !i.dirs[name] {
		i.dirs[name] = true
		i.Dir(path.Dir(name))
		i.entry(name, unix.S_IFDIR|0o755, nil)
	}
}

// Copy adds a file of this machine, executable as it is here.
func (i *Initrd) Copy(name, from string) {
	i.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		i.t.Fatal(err)
	}
	fi, err := os.Stat(from)
	if err != nil {
		i.t.Fatal(err)
	}
	i.Dir(path.Dir(name))
	i.entry(name, unix.S_IFREG|uint32(fi.Mode()&fs.ModePerm), data)
}

// Link adds a symbolic link.
func (i *Initrd) Link(name, to string) {
	i.Dir(path.Dir(name))
	i.entry(name, unix.S_IFLNK|0o777, []byte(to))
}

// Program adds a program of this machine where it is here, with the libraries
// that it needs.
func (i *Initrd) Program(name string) {
	i.t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		i.t.Fatalf("%s is missing: install it", name)
	}
	i.shared(file)
	i.libraries(file)
}

// libraries adds those that a program needs.
func (i *Initrd) libraries(file string) {
	i.t.Helper()
	// Of what is static ldd says that it is, and fails.
	needs, _ := exec.CommandContext(i.t.Context(), "ldd", file).Output()
	for _, from := range paths.FindAllString(string(needs), -1) {
		i.shared(from)
	}
}

// shared adds a file where it is here, once.
func (i *Initrd) shared(from string) {
	i.t.Helper()
	if name := strings.TrimPrefix(from, "/"); !i.files[name] {
		i.files[name] = true
		i.Copy(name, from)
	}
}

// paths are the files in what ldd prints.
var paths = regexp.MustCompile(`/\S+`)

func (i *Initrd) entry(name string, mode uint32, data []byte) {
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

func (i *Initrd) pad() { i.write(make([]byte, -i.size&3)) }

// write leaves errors to the last Flush, which repeats them.
func (i *Initrd) write(b []byte) {
	n, _ := i.w.Write(b)
	i.size += n
}

// Finish returns the archive's path.
func (i *Initrd) Finish() string {
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
