// SPDX-License-Identifier: Apache-2.0

package kmod

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// lists is which modules there are in a directory.
type lists struct {
	dir string
	// files are, by the name of each module, those to load, in order.
	files map[string][]string
	// built are the names of those that are built in.
	built map[string]bool
}

func read(dir string) (lists, error) {
	l := lists{dir: dir, files: map[string][]string{}, built: map[string]bool{}}
	err := lines(dir, "modules.dep", func(line string) {
		file, needs, _ := strings.Cut(line, ":")
		files := append([]string{file}, strings.Fields(needs)...)
		slices.Reverse(files) // the farthest dependency comes last
		l.files[module(file)] = files
	})
	if err != nil {
		return lists{}, err
	}
	return l, lines(dir, "modules.builtin", func(line string) { l.built[module(line)] = true })
}

// find lists the files to load, each after those that it needs: none for a
// module that is built in.
func (l lists) find(name string) ([]string, error) {
	files, ok := l.files[plain(name)]
	if !ok && !l.built[plain(name)] {
		return nil, fmt.Errorf("it is not in %s: %w", l.dir, fs.ErrNotExist)
	}
	return files, nil
}

func lines(dir, file string, each func(string)) error {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20) // a module may need many
	for in.Scan() {
		each(in.Text())
	}
	return in.Err()
}

// module is the name of the module in a file, which may be compressed.
func module(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return plain(name)
}

// plain is a name as the kernel writes it.
func plain(name string) string { return strings.ReplaceAll(name, "-", "_") }
