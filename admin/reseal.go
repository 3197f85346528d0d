package admin

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// partSuffix is the end of the name of a segment that is not whole yet.
const partSuffix = ".part"

// Reseal seals all records with the active key. The chain stays as it is, for
// it is made of what the records say.
func (a *Audit) Reseal(ctx context.Context) error {
	if err := a.reseal(ctx); err != nil {
		return fmt.Errorf("reseal audit: %w", err)
	}
	return nil
}

func (a *Audit) reseal(ctx context.Context) error {
	// Segments before the last do not change any more.
	names, err := segments(a.dir)
	if err != nil {
		return err
	}
	for _, name := range names[:max(0, len(names)-1)] {
		if err = a.resealSegment(ctx, name); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// One that was begun meanwhile is among them.
	if names, err = segments(a.dir); err != nil {
		return err
	}
	for _, name := range names {
		if err = a.resealSegment(ctx, name); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(filepath.Join(a.dir, names[len(names)-1]), os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	old := a.file
	a.file = file
	return old.Close()
}

// resealSegment puts another file in a segment's place, unless the active key
// seals all of it already.
func (a *Audit) resealSegment(ctx context.Context, name string) error {
	path := filepath.Join(a.dir, name)
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	changed, err := a.copyResealed(ctx, to, from)
	if err == nil {
		err = to.Sync()
	}
	err = errors.Join(err, to.Close())
	if err != nil || !changed {
		return errors.Join(err, os.Remove(to.Name()))
	}
	if err = os.Rename(to.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(a.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// copyResealed copies whole lines. One that does not open stays as it is: it is
// no record now, and is none after its key is gone.
func (a *Audit) copyResealed(ctx context.Context, to io.Writer, from io.Reader) (changed bool, err error) {
	r, w := bufio.NewReaderSize(from, maxRecord), bufio.NewWriterSize(to, maxRecord)
	for ctx.Err() == nil {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return changed, w.Flush() // without a line that was cut short
		}
		if err != nil {
			return changed, err
		}
		sealed, err := base64.StdEncoding.AppendDecode(nil, line[:len(line)-1])
		if err == nil && !a.seal.Current(sealed) {
			if plain, err := a.seal.Open(auditDomain, sealed); err == nil {
				changed = true
				line = append(base64.StdEncoding.AppendEncode(nil, a.seal.Seal(auditDomain, plain)), '\n')
			}
		}
		if _, err := w.Write(line); err != nil {
			return changed, err
		}
	}
	return changed, context.Cause(ctx)
}
