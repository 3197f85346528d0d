package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/pki/seal"
	"skep/store/raftlog"
)

// resealDir makes the test binary one that seals a directory anew.
const resealDir = "SKEP_TEST_RESEAL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(resealDir); dir != "" {
		if err := resealAll(dir); err != nil {
			println(err.Error())
			os.Exit(1) //nolint:forbidigo // a test's process
		}
		return
	}
	m.Run()
}

func oldKey() seal.Secret { return bytes.Repeat([]byte{1}, seal.KeySize) }
func newKey() seal.Secret { return bytes.Repeat([]byte{2}, seal.KeySize) }

func resealAll(dir string) error {
	ring, err := seal.NewKeyring(newKey(), oldKey())
	if err != nil {
		return err
	}
	l, s, err := raftlog.Open(raftlog.Config{Dir: dir, ClusterID: "c", NodeID: "n", Keyring: ring, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	println("opened")
	err = raftlog.Reseal(context.Background(), l, s)
	println("done")
	return errors.Join(err, l.Close())
}

// withOldKey makes a directory whose every part is sealed with the old key.
func withOldKey(t *testing.T, cfg raftlog.Config) (l *raftlog.Log, s *raftlog.Snapshots, state []byte) {
	t.Helper()
	l, s = open(t, cfg)
	store(t, l, 1, 1500)
	if err := l.SetUint64([]byte("LastVoteTerm"), 42); err != nil {
		t.Fatal(err)
	}
	state = bytes.Repeat([]byte(canary), 100_000)
	snapshot(t, s, 900, state)
	snapshot(t, s, 1000, state)
	return l, s, state
}

// onlyNewKey is an error unless all is there with the new key alone.
func onlyNewKey(t *testing.T, dir string, last uint64, state []byte) {
	t.Helper()
	ring, err := seal.NewKeyring(newKey())
	if err != nil {
		t.Fatal(err)
	}
	l, s, err := raftlog.Open(raftlog.Config{Dir: dir, ClusterID: "c", NodeID: "n", Keyring: ring, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("open without the old key: %v", err)
	}
	defer shut(t, l)
	if err := check(l, 1, last); err != nil {
		t.Error(err)
	}
	if v, err := l.GetUint64([]byte("LastVoteTerm")); err != nil || v != 42 {
		t.Errorf("vote %d, %v", v, err)
	}
	metas, err := s.List()
	if err != nil || len(metas) != 2 || metas[0].Index != 1000 || metas[0].Size != int64(len(state)) {
		t.Errorf("snapshots %v, %v", metas, err)
	}
}

func TestReseal_LeavesNothingToTheOldKey(t *testing.T) {
	cfg := config(t, t.TempDir())
	ring, err := seal.NewKeyring(oldKey())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Keyring = ring
	l, s, state := withOldKey(t, cfg)
	// A snapshot that is begun with the old key, and entries that come meanwhile.
	k, err := s.Create(raft.SnapshotVersionMax, 1001, 3, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	ring.Rotate(newKey())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- raftlog.Reseal(ctx, l, s) }()
	store(t, l, 1501, 1700)
	select {
	case err := <-done:
		t.Fatalf("did not wait for the snapshot: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := k.Cancel(); err != nil {
		t.Fatal(err)
	}
	if err := raftlog.Reseal(t.Context(), l, s); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLog(entry(1701)); err != nil {
		t.Errorf("the log is not as well as before: %v", err)
	}
	shut(t, l)
	onlyNewKey(t, cfg.Dir, 1701, state)
}

// TestReseal_SurvivesKills kills a process that seals anew at ever later
// moments: with both keys all is readable each time, and in the end with the
// new one.
func TestReseal_SurvivesKills(t *testing.T) {
	cfg := config(t, t.TempDir())
	ring, err := seal.NewKeyring(oldKey())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Keyring = ring
	l, _, state := withOldKey(t, cfg)
	shut(t, l)
	ring.Rotate(newKey())
	kills := 0
	for after := time.Duration(0); ; after += 2 * time.Millisecond {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), resealDir+"="+cfg.Dir)
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 64)); err != nil { // it has opened the log
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		kills++
		l, s := open(t, cfg)
		if err := check(l, 1, 1500); err != nil {
			t.Fatalf("after %s: %v", after, err)
		}
		if metas, err := s.List(); err != nil || len(metas) != 2 {
			t.Fatalf("after %s: %v, %v", after, metas, err)
		}
		shut(t, l)
	}
	t.Logf("killed %d times", kills)
	if kills < 2 {
		t.Error("too few kills: nothing is tested")
	}
	onlyNewKey(t, cfg.Dir, 1500, state)
	left, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*.part"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
