// SPDX-License-Identifier: Apache-2.0

// Package kmod loads kernel modules, without a program.
//
// It reads the lists that depmod makes beside the modules, and knows nothing of
// aliases, parameters or the settings of modprobe.
package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is where the modules of each kernel are, by its release.
const root = "/lib/modules"

// Load loads modules, and those that they need, of the kernel that runs. One
// that is loaded, or built in, is no error; one that is not there is one that
// is fs.ErrNotExist. All are tried.
func Load(names ...string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	return LoadFrom(filepath.Join(root, unix.ByteSliceToString(u.Release[:])), names...)
}

// LoadFrom does so with the modules of a directory.
func LoadFrom(dir string, names ...string) error {
	names = slices.DeleteFunc(slices.Clone(names), live)
	if len(names) == 0 {
		return nil
	}
	l, err := read(dir)
	if err != nil {
		return fmt.Errorf("load modules %s: %w", strings.Join(names, ", "), err)
	}
	var errs []error
	for _, name := range names {
		if err := l.load(name); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// live reports whether a module is loaded, and done with its start.
func live(name string) bool {
	state, err := os.ReadFile(filepath.Join("/sys/module", plain(name), "initstate"))
	return err == nil && strings.TrimSpace(string(state)) == "live"
}

func (l lists) load(name string) error {
	files, err := l.find(name)
	if err != nil {
		return err
	}
	for _, file := range files {
		if live(module(file)) {
			continue
		}
		if err := insert(filepath.Join(l.dir, file)); err != nil {
			return err
		}
	}
	return nil
}

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
