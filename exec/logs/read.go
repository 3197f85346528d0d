package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"

	"skep/store/object"
)

// Read yields the lines that q wants from the log in dir. With q.Follow it
// goes on until ended is closed and all is read, or ctx ends.
func Read(ctx context.Context, dir string, q object.LogQuery, ended <-chan struct{}) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		r := &reader{dir: dir, q: q}
		defer r.close()
		if err := r.run(ctx, ended, yield); err != nil && !errors.Is(err, errEnough) {
			yield(object.LogLine{}, fmt.Errorf("read log: %w", err))
		}
	}
}

// errEnough ends a reading early: the consumer left, or q.Until has come.
var errEnough = errors.New("enough")

type reader struct {
	dir string
	q   object.LogQuery
	f   *os.File
	buf []byte // read from f, and not a whole record yet
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
	}
}

func (r *reader) run(ctx context.Context, ended <-chan struct{}, yield func(object.LogLine, error) bool) error {
	var news <-chan struct{}
	if r.q.Follow {
		w, err := watch(r.dir)
		if err != nil {
			return err
		}
		defer w.close()
		news = w.news
	}
	if err := r.seek(); err != nil {
		return err
	}
	for {
		done := !r.q.Follow
		select {
		case <-ended:
			done = true
		default:
		}
		// Invariant: what was there when done was decided is read before the end.
		if err := r.drain(ctx, yield); err != nil {
			return err
		}
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ended:
		case <-ctx.Done():
			return nil
		}
	}
}

// seek goes to where the reading starts.
func (r *reader) seek() error {
	files, err := list(r.dir)
	if err != nil || len(files) == 0 {
		return err
	}
	left := r.q.Tail
	for i, name := range files {
		f, err := os.Open(filepath.Join(r.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away; its records are in the next one
		}
		if err != nil {
			return err
		}
		r.close()
		r.f = f
		if left < 0 {
			if i == len(files)-1 {
				return nil
			}
			continue
		}
		at, n, err := back(f, left, r.wants)
		if err != nil {
			return err
		}
		if left -= n; left <= 0 || i == len(files)-1 {
			_, err = f.Seek(at, io.SeekStart)
			return err
		}
	}
	return nil
}

func (r *reader) wants(l object.LogLine) bool {
	return l.Stderr && r.q.Stderr || !l.Stderr && r.q.Stdout
}

// drain yields what there is, through all newer files.
func (r *reader) drain(ctx context.Context, yield func(object.LogLine, error) bool) error {
	for ctx.Err() == nil {
		if r.f == nil {
			if moved, err := r.next(); err != nil || !moved {
				return err
			}
		}
		if err := r.rest(ctx, yield); err != nil {
			return err
		}
		moved, err := r.turned()
		if err != nil || !moved {
			return err
		}
		// The shim wrote its last to the old file before it turned.
		if err := r.rest(ctx, yield); err != nil {
			return err
		}
		if moved, err := r.next(); err != nil || !moved {
			return err
		}
	}
	return nil
}

// rest yields the records up to the end of the open file.
func (r *reader) rest(ctx context.Context, yield func(object.LogLine, error) bool) error {
	block := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := r.f.Read(block)
		r.buf = append(r.buf, block[:n]...)
		if e := r.records(yield); e != nil {
			return e
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) records(yield func(object.LogLine, error) bool) error {
	rest := r.buf
	for {
		rec, after, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		rest = after
		line, ok := Parse(rec)
		if !ok || !r.wants(line) || line.Time.Before(r.q.Since) {
			continue
		}
		if !r.q.Until.IsZero() && line.Time.After(r.q.Until) {
			return errEnough
		}
		if !yield(line, nil) {
			return errEnough
		}
	}
	if len(rest) > maxRecord {
		rest = nil // no record is that long
	}
	r.buf = append(r.buf[:0], rest...)
	return nil
}

// turned reports whether the open file is no longer the current one.
func (r *reader) turned() (bool, error) {
	cur, err := os.Stat(filepath.Join(r.dir, "log"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // just being turned
	}
	if err != nil {
		return false, err
	}
	mine, err := r.f.Stat()
	if err != nil {
		return false, err
	}
	return !os.SameFile(cur, mine), nil
}

// next opens the file that comes after the open one.
func (r *reader) next() (moved bool, err error) {
	files, err := list(r.dir)
	if err != nil || len(files) == 0 {
		return false, err
	}
	pick := files[len(files)-1] // the oldest: ours may be gone
	if r.f != nil {
		mine, lost := r.f.Stat()
		if lost != nil {
			return false, lost
		}
		for i, name := range files {
			if st, lost := os.Stat(filepath.Join(r.dir, name)); lost == nil && os.SameFile(st, mine) {
				if i == 0 {
					return false, nil
				}
				pick = files[i-1]
			}
		}
	}
	f, err := os.Open(filepath.Join(r.dir, pick))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // turned meanwhile: look again
	}
	if err != nil {
		return false, err
	}
	r.close()
	r.f, r.buf = f, nil
	return true, nil
}

// list names the log's files, the newest first.
func list(dir string) (names []string, err error) {
	for i := 0; ; i++ {
		name := "log"
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		_, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			if i == 0 {
				continue // being turned, or nothing was written yet
			}
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
}
