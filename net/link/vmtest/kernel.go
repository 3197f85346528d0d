// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Kernel is an unpacked kernel package.
type Kernel struct{ image, modules string }

// FindKernel is Debian's kernel for clouds, which .ci/kernel fetches once.
func FindKernel(t *testing.T) Kernel {
	t.Helper()
	root := unpack(t)
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("%d kernels in %s, want one (%v)", len(images), root, err)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return Kernel{image: images[0], modules: filepath.Join(root, "lib", "modules", version)}
}

// files are those of modules and of what these need. What the kernel has built
// in needs no file.
func (k Kernel) files(t *testing.T, names ...string) []string {
	t.Helper()
	needs := map[string][]string{}
	for line := range strings.Lines(k.read(t, "modules.dep")) {
		file, deps, _ := strings.Cut(line, ":")
		needs[moduleName(file)] = append(strings.Fields(deps), file)
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

// unpack returns the directory that .ci/kernel tells, wherever in the tree this is.
func unpack(t *testing.T) string {
	t.Helper()
	top, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for !exists(filepath.Join(top, "go.mod")) && top != "/" {
		top = filepath.Dir(top)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(top, ".ci", "kernel"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("unpack a kernel: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (k Kernel) read(t *testing.T, name string) string {
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
