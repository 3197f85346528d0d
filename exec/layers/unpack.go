package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Unpack puts a layer in place unless it is there. open is called once if at
// all and gives the layer's tar: plain, gzip or zstd. All of it is read, so a
// source that verifies itself at its end does. blob is noted as its origin.
func (s *Store) Unpack(ctx context.Context, diffID, blob digest.Digest, open func() (io.ReadCloser, error)) error {
	return s.Make(ctx, diffID, func(root string) (Info, error) {
		src, err := open()
		if err != nil {
			return Info{}, err
		}
		info, err := s.unpack(ctx, root, src, diffID)
		info.Blob = blob
		if err = errors.Join(err, src.Close()); err != nil {
			return Info{}, fmt.Errorf("unpack layer %s: %w", diffID, err)
		}
		return info, nil
	})
}

func (s *Store) unpack(ctx context.Context, root string, src io.Reader, want digest.Digest) (Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := newStream(ctx, src, s.limits, digest.SHA256.Hash())
	defer st.Close()

	p := &policy{limits: s.limits}
	err := inRoot(root, func() error {
		_, err := archive.Apply(ctx, "/", st, archive.WithFilter(p.filter), archive.WithConvertWhiteout(p.place))
		if err == nil {
			err = p.finish()
		}
		return err
	})
	if err != nil {
		if cause := st.failed(); cause != nil {
			return Info{}, cause
		}
		return Info{}, explain(err)
	}
	// The padding behind the archive counts for the digest.
	if _, err := io.Copy(io.Discard, st); err != nil {
		return Info{}, err
	}
	if got := st.digest(); got != want {
		return Info{}, refuse("its content is %s", got)
	}
	return Info{Size: p.bytes, Implied: p.impliedDirs()}, nil
}

// inRoot runs f in a thread of its own whose root is dir. The kernel resolves
// every path there, so nothing in a tar can name a file outside. The thread
// is never unlocked, which ends it with its goroutine.
func inRoot(dir string, f func() error) error {
	done := make(chan error, 1)
	// A goroutine, because the thread must go when f is done.
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Chroot(dir); err != nil {
				return fmt.Errorf("chroot: %w", err)
			}
			if err := unix.Chdir("/"); err != nil {
				return fmt.Errorf("chdir: %w", err)
			}
			unix.Umask(0)
			return f()
		}()
	}()
	return <-done
}

// refuse is the error of a layer that breaks a rule.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, &refusal{fmt.Sprintf(format, args...)})
}

// refusal is a reason; to the API it is the client's fault.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return errdefs.ErrInvalidArgument }

// explain turns errors of the kernel about what a layer asked for into refusals.
func explain(err error) error {
	var pathErr *os.PathError
	var linkErr *os.LinkError
	switch {
	case errors.Is(err, ErrRefused), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return err
	case errors.As(err, &linkErr):
		return refuse("cannot link %q to %q: %v", linkErr.New, linkErr.Old, linkErr.Err)
	case errors.As(err, &pathErr):
		return refuse("cannot make %q: %v", pathErr.Path, pathErr.Err)
	}
	return err
}
