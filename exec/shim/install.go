package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Install places a copy of the running binary at dir/<version>-<hash>/skep, if
// it is not there, and removes copies from which nothing runs any more. Shims
// run from the copy, so that an upgrade does not pull their binary away: the
// way in which the runtime seals the binary needs its file to stay.
func Install(dir, version string) (exe string, err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("install in %s: %w", dir, err)
	}
	defer self.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, self); err != nil {
		return "", fmt.Errorf("install in %s: %w", dir, err)
	}
	name := fileName(version, sum)
	exe = filepath.Join(dir, name, "skep")
	if !intact(exe, sum) {
		if err := place(self, exe); err != nil {
			return "", fmt.Errorf("install in %s: %w", dir, err)
		}
	}
	return exe, prune(dir, name)
}

func fileName(version string, sum hash.Hash) string {
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r < ' ' {
			return '-'
		}
		return r
	}, version)
	return clean + "-" + hex.EncodeToString(sum.Sum(nil)[:8])
}

func intact(exe string, want hash.Hash) bool {
	f, err := os.Open(exe)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return err == nil && string(sum.Sum(nil)) == string(want.Sum(nil))
}

// place copies, so that the file is there whole or not at all, also after a
// power cut.
func place(self *os.File, exe string) error {
	dir := filepath.Dir(exe)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := self.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tmp, err := os.OpenFile(filepath.Join(filepath.Dir(dir), ".skep"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, self)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), exe); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// prune removes the copies, but for keep, that no process runs from.
func prune(dir, keep string) error {
	used := map[string]bool{keep: true}
	procs, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	for _, p := range procs {
		exe, gone := os.Readlink(p)
		if gone != nil {
			continue // it ended, or is a kernel thread
		}
		if rest, ok := strings.CutPrefix(exe, dir+"/"); ok {
			used[strings.Split(rest, "/")[0]] = true
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old copies: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || used[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove old copies: %w", err)
		}
	}
	return nil
}
