// SPDX-License-Identifier: Apache-2.0

// Package kmod loads kernel modules, without a program.
//
// It reads the lists that depmod makes beside the modules, and knows nothing of
// aliases, parameters or the settings of modprobe.
package kmod

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is where the modules of each kernel are, by its release.
const root = "/lib/modules"

// Load loads modules, and those that they need, of the kernel that runs. One
// that is loaded, or built in, is no error; one that is not there is one
// that is fs.ErrNotExist.
func Load(names ...string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	return LoadFrom(filepath.Join(root, unix.ByteSliceToString(u.Release[:])), names...)
}

// LoadFrom does so with the modules of a directory.
func LoadFrom(dir string, names ...string) error {
	for _, name := range names {
		if err := load(dir, name); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func load(dir, name string) error {
	files, err := find(dir, name)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := insert(filepath.Join(dir, file)); err != nil {
			return err
		}
	}
	return nil
}

// find lists the files to load, each after those that it needs: none for a
// module that is built in.
func find(dir, name string) ([]string, error) {
	deps, err := lines(dir, "modules.dep")
	if err != nil {
		return nil, err
	}
	for _, line := range deps {
		file, needs, _ := strings.Cut(line, ":")
		if module(file) == plain(name) {
			files := append([]string{file}, strings.Fields(needs)...)
			slices.Reverse(files)
			return files, nil
		}
	}
	built, err := lines(dir, "modules.builtin")
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(built, func(file string) bool { return module(file) == plain(name) }) {
		return nil, nil
	}
	return nil, fmt.Errorf("it is not in %s: %w", dir, fs.ErrNotExist)
}

func lines(dir, file string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var out []string
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20) // a module may need many
	for in.Scan() {
		out = append(out, in.Text())
	}
	return out, in.Err()
}

// module is the name of the module in a file, which may be compressed.
func module(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return plain(name)
}

// plain is a name as the kernel writes it.
func plain(name string) string { return strings.ReplaceAll(name, "-", "_") }

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("insert %s: %w", path, err)
	}
	return nil
}
