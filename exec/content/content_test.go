package content_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"skep/exec/content"
)

func open(t *testing.T) (*content.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := content.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// leftovers are unfinished blobs.
func leftovers(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "tmp/blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// ingest writes a blob in one go.
func ingest(t *testing.T, s *content.Store, r io.Reader, want digest.Digest, size int64) (digest.Digest, int64, error) {
	t.Helper()
	w, err := s.Writer(want, size)
	if err != nil {
		return "", 0, err
	}
	defer w.Close()
	if _, err = io.Copy(w, r); err != nil {
		return "", 0, err
	}
	return w.Commit()
}

func TestWriter(t *testing.T) {
	body := strings.Repeat("content ", 10_000)
	good := digest.FromString(body)
	for _, tt := range []struct {
		name string
		body string
		want digest.Digest
		size int64
		err  error
	}{
		{"known", body, good, int64(len(body)), nil},
		{"of unknown size", body, good, -1, nil},
		{"of unknown digest", body, "", -1, nil},
		{"empty", "", digest.FromString(""), 0, nil},
		{"flipped", "C" + body[1:], good, int64(len(body)), content.ErrMismatch},
		{"short", body[1:], good, int64(len(body)), content.ErrMismatch},
		{"long", body + "x", good, int64(len(body)), content.ErrMismatch},
		{"short of unknown size", body[1:], good, -1, content.ErrMismatch},
		{"another algorithm", body, digest.Digest("sha512:" + strings.Repeat("0", 128)), -1, errdefs.ErrInvalidArgument},
		{"a path for a digest", body, "sha256:../../../../etc/passwd", -1, errdefs.ErrInvalidArgument},
		{"no digest", body, "sha256", -1, errdefs.ErrInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t)
			d, n, err := ingest(t, s, strings.NewReader(tt.body), tt.want, tt.size)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("left in tmp: %v", left)
			}
			if err != nil {
				if s.Has(good) {
					t.Error("it was stored")
				}
				return
			}
			b, err := s.Bytes(d, n)
			if err != nil || string(b) != tt.body {
				t.Errorf("%d bytes came back, %v", len(b), err)
			}
		})
	}
}

func TestWriter_OfASourceThatBreaks(t *testing.T) {
	s, dir := open(t)
	broken := errors.New("broken")
	if _, _, err := ingest(t, s, iotest.ErrReader(broken), "", -1); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func TestBytes_VerifiesWhatTheDiskGives(t *testing.T) {
	s, dir := open(t)
	d, err := s.Write([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bytes(d, 3); err == nil {
		t.Error("a blob larger than the limit was read")
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Encoded()), []byte("rotten!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bytes(d, 100); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Bytes(digest.FromString("other"), 100); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestOpen_WipesUnfinishedBlobs(t *testing.T) {
	s, dir := open(t)
	d, err := s.Write([]byte("whole"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer("", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	s, err = content.Open(dir) // as after a crash: the writer was never closed
	if err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if !s.Has(d) {
		t.Error("a whole blob is gone")
	}
}

func TestLease(t *testing.T) {
	s, _ := open(t)
	d := digest.FromString("content")
	a, b := s.Lease(), s.Lease()
	a.Hold(d, d)
	b.Hold(d)
	if _, _, err := ingest(t, s, bytes.NewReader([]byte("content")), d, 7); err != nil {
		t.Fatal(err)
	}
	removed := func() bool {
		n, err := s.Remove(d)
		if err != nil {
			t.Fatal(err)
		}
		ran, err := s.Unless(d, func() error { return nil })
		if err != nil || ran != (n > 0) {
			t.Errorf("Unless ran: %v, %v; Remove freed %d bytes", ran, err, n)
		}
		return n > 0
	}
	if removed() {
		t.Error("removed under two leases")
	}
	a.Release()
	a.Release()
	if removed() {
		t.Error("removed under a lease")
	}
	b.Release()
	b.Hold(d) // too late to count
	if !removed() {
		t.Error("not removed without a lease")
	}
}
