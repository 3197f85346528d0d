package replica_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"skep/pki/seal"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

func config(tb testing.TB, dir string) replica.Config {
	tb.Helper()
	ring, err := seal.NewKeyring(bytes.Repeat([]byte{5}, seal.KeySize))
	if err != nil {
		tb.Fatal(err)
	}
	return replica.Config{
		Dir: dir, ID: "m1", NodeID: "n1", ClusterID: "c1", Keyring: ring, Bootstrap: true,
		Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
}

// run runs a member until stop, which returns what Run returned.
func run(tb testing.TB, cfg replica.Config, lead func(context.Context) error) (m *replica.Member, stop func() error) {
	tb.Helper()
	m, err := replica.Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan error, 1)
	go func() {
		err := m.Run(ctx, lead)
		if err != nil {
			tb.Errorf("run: %v", err)
		}
		done <- err
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	tb.Cleanup(func() { _ = stop() })
	return m, stop
}

func secret(id, name string) *object.Secret {
	s := new(object.Secret)
	s.ID, s.Spec.Name, s.Spec.Data = id, name, []byte("CANARY of "+name)
	return s
}

func write(tb testing.TB, m *replica.Member, do func(tx *store.Tx)) uint64 {
	tb.Helper()
	tx := store.Begin(m.Snapshot())
	do(tx)
	i, err := m.Propose(tb.Context(), tx)
	if err != nil {
		tb.Fatal(err)
	}
	if m.Snapshot().Index < i {
		tb.Errorf("acknowledged %d before it was there", i)
	}
	return i
}

func TestMember_IsReadySoonAndKeepsItsState(t *testing.T) {
	cfg := config(t, t.TempDir())
	leading := make(chan struct{})
	start := time.Now()
	m, stop := run(t, cfg, func(ctx context.Context) error { close(leading); <-ctx.Done(); return nil })
	<-m.Ready()
	t.Logf("ready after %s", time.Since(start).Round(time.Millisecond))
	<-leading
	if !m.Leading() {
		t.Error("leads, and does not know it")
	}
	index := write(t, m, func(tx *store.Tx) { tx.Create(secret("1", "one")) })
	s, err := m.Read(t.Context())
	if err != nil || s.Index != index {
		t.Errorf("read %v, %v", s, err)
	}
	got, err := s.Secrets.Find("one")
	if err != nil || got.Version.Index != index {
		t.Errorf("got %v, %v", got, err)
	}
	for _, tt := range []struct {
		do   func(tx *store.Tx)
		kind error
		text string
	}{
		{func(tx *store.Tx) { tx.Create(secret("2", "ONE")) }, errdefs.ErrAlreadyExists, "secret ONE already exists"},
		{func(tx *store.Tx) { tx.Update(secret("1", "x")) }, store.ErrSequence, "update out of sequence"},
		{func(tx *store.Tx) { tx.Delete(secret("9", "x")) }, store.ErrSequence, "secret 9 not found"},
		{func(tx *store.Tx) {
			big := secret("3", "big")
			big.Spec.Data = make([]byte, store.MaxCommand)
			tx.Create(big)
		}, errdefs.ErrInvalidArgument, "raft: raft message is too large and can't be sent"},
	} {
		tx := store.Begin(s)
		tt.do(tx)
		if _, err := m.Propose(t.Context(), tx); !errors.Is(err, tt.kind) || err.Error() != tt.text {
			t.Errorf("got %v, want %q", err, tt.text)
		}
	}
	if err := stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if m.Leading() {
		t.Error("leads after its end")
	}
	tx := store.Begin(m.Snapshot())
	tx.Create(secret("4", "late"))
	if _, err := m.Propose(t.Context(), tx); !errdefs.IsUnavailable(err) {
		t.Errorf("a member that ended: %v", err)
	}

	start = time.Now()
	m, _ = run(t, cfg, nil)
	<-m.Ready()
	t.Logf("ready again after %s", time.Since(start).Round(time.Millisecond))
	if _, err := m.Snapshot().Secrets.Find("one"); err != nil {
		t.Errorf("lost: %v", err)
	}
	write(t, m, func(tx *store.Tx) { tx.Create(secret("5", "five")) })
}

func TestMember_RestoresFromSnapshotAndLog(t *testing.T) {
	cfg := config(t, t.TempDir())
	cfg.Timing = replica.Timing{SnapshotInterval: 20 * time.Millisecond, SnapshotThreshold: 20, TrailingLogs: 5}
	m, stop := run(t, cfg, nil)
	<-m.Ready()
	for i := range 200 {
		write(t, m, func(tx *store.Tx) { tx.Create(secret(fmt.Sprint(i), fmt.Sprint("s", i))) })
	}
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; n == 0; {
		files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*.snap"))
		if err != nil {
			t.Fatal(err)
		}
		n = len(files)
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("no snapshot")
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	before := m.Snapshot()
	m, stop = run(t, cfg, nil)
	<-m.Ready()
	var a, b bytes.Buffer
	if err := errors.Join(before.Save(&a), m.Snapshot().Save(&b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the restored state differs")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte("CANARY")) {
			t.Errorf("%s holds a secret in the clear", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestMember_EndsWhenItsDiskFails(t *testing.T) {
	cfg := config(t, t.TempDir())
	m, err := replica.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	leading, led := make(chan struct{}), make(chan struct{})
	go func() {
		done <- m.Run(t.Context(), func(ctx context.Context) error {
			close(leading)
			<-ctx.Done()
			close(led)
			return ctx.Err()
		})
	}()
	<-leading
	if err := m.Close(); err != nil { // the file is gone under it
		t.Fatal(err)
	}
	tx := store.Begin(m.Snapshot())
	tx.Create(secret("1", "one"))
	if i, err := m.Propose(t.Context(), tx); err == nil {
		t.Errorf("acknowledged %d without a disk", i)
	}
	if err := <-done; err == nil {
		t.Error("ran on without a disk")
	} else {
		t.Logf("ended: %v", err)
	}
	<-led
}

func TestMember_LeadsAgainWhenLeadingFails(t *testing.T) {
	calls := make(chan int, 8)
	n := 0
	_, stop := run(t, config(t, t.TempDir()), func(ctx context.Context) error {
		n++
		calls <- n
		if n == 1 {
			return errors.New("a loop failed")
		}
		<-ctx.Done()
		return nil
	})
	for want := 1; want <= 2; want++ {
		if got := <-calls; got != want {
			t.Errorf("call %d, want %d", got, want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestMember_DirectoryIsItsOwn(t *testing.T) {
	cfg := config(t, t.TempDir())
	m, stop := run(t, cfg, nil)
	<-m.Ready()
	if _, err := replica.Open(cfg); err == nil {
		t.Error("two members opened one directory")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	lost := cfg
	lost.Dir, lost.Bootstrap = t.TempDir(), false
	m, err := replica.Open(lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "no state") {
		t.Errorf("ran without a state: %v", err)
	}
	cfg.Keyring.Rotate(seal.NewSecret())
	cfg.Keyring.Retire()
	if _, err := replica.Open(cfg); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("opened with another key: %v", err)
	}
}

func TestMember_ManyProposalsShareTheDisk(t *testing.T) {
	m, _ := run(t, config(t, t.TempDir()), nil)
	<-m.Ready()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 20 {
				tx := store.Begin(m.Snapshot())
				tx.Create(secret(fmt.Sprint(w, "-", i), fmt.Sprint(w, "-", i)))
				if _, err := m.Propose(t.Context(), tx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := m.Snapshot().Secrets.Len(); got != 320 {
		t.Errorf("%d secrets, want 320", got)
	}
}
