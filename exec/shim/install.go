package shim

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Program is what shims run from.
type Program interface {
	// Sum is the SHA-256 of its bytes.
	Sum() ([]byte, error)
	Open() (io.ReadCloser, error)
}

// Self is the running binary as a program, whatever lies at its path by now.
type Self struct{}

const self = "/proc/self/exe"

// Sum reads all of it.
func (Self) Sum() ([]byte, error) { return sumOf(self) }

// Open opens it.
func (Self) Open() (io.ReadCloser, error) { return os.Open(self) }

// Install places the program at dir/<version>-<hash>/skep, if it is not there,
// and removes those from which nothing runs any more. Shims run from that file,
// so that an upgrade does not pull their binary away: the way in which the
// runtime seals the binary needs its file to stay.
func Install(dir, version string, p Program) (exe string, err error) {
	sum, err := p.Sum()
	if err != nil {
		return "", fmt.Errorf("install in %s: %w", dir, err)
	}
	name := fileName(version, sum)
	exe = filepath.Join(dir, name, "skep")
	if found, unreadable := sumOf(exe); unreadable != nil || !bytes.Equal(found, sum) {
		if err := place(p, exe, sum); err != nil {
			return "", fmt.Errorf("install in %s: %w", dir, err)
		}
	}
	return exe, prune(dir, name)
}

func fileName(version string, sum []byte) string {
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r < ' ' {
			return '-'
		}
		return r
	}, version)
	return clean + "-" + hex.EncodeToString(sum[:min(len(sum), 8)])
}

func sumOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

// place copies, so that the file is there whole or not at all, also after a
// power cut.
func place(p Program, exe string, want []byte) error {
	dir := filepath.Dir(exe)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	from, err := p.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	tmp, err := os.OpenFile(filepath.Join(filepath.Dir(dir), ".skep"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(tmp, sum), from)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return errors.New("the program is not what its sum says")
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
