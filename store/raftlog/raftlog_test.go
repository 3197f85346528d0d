package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"skep/pki/seal"
	"skep/store/object"
	"skep/store/raftlog"
)

const canary = "CANARY-never-on-disk"

func config(tb testing.TB, dir string) raftlog.Config {
	tb.Helper()
	ring, err := seal.NewKeyring(bytes.Repeat([]byte{5}, seal.KeySize))
	if err != nil {
		tb.Fatal(err)
	}
	return raftlog.Config{Dir: dir, ClusterID: "c", NodeID: "n", Keyring: ring, Logger: slog.New(slog.DiscardHandler)}
}

func open(tb testing.TB, cfg raftlog.Config) (*raftlog.Log, *raftlog.Snapshots) {
	tb.Helper()
	l, s, err := raftlog.Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return l, s
}

func shut(tb testing.TB, l *raftlog.Log) {
	tb.Helper()
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
}

func entry(i uint64) *raft.Log {
	return &raft.Log{
		Index: i, Term: 1 + i/100, Type: raft.LogType(i % 2), Data: fmt.Appendf(nil, "%s %d %s", canary, i, strings.Repeat("x", int(i%500))),
		Extensions: []byte(strings.Repeat("e", int(i%3))), AppendedAt: time.Unix(int64(i), 7),
	}
}

func store(tb testing.TB, l *raftlog.Log, from, to uint64) {
	tb.Helper()
	for i := from; i <= to; {
		var batch []*raft.Log
		for n := 0; n < 1+int(i%7) && i <= to; n++ {
			batch = append(batch, entry(i))
			i++
		}
		if err := l.StoreLogs(batch); err != nil {
			tb.Fatal(err)
		}
	}
}

// check is an error unless the log is from..to, as stored.
func check(l *raftlog.Log, from, to uint64) error {
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if first != from || last != to {
		return fmt.Errorf("holds %d to %d, want %d to %d", first, last, from, to)
	}
	for i := from; i <= to && i > 0; i++ {
		var got raft.Log
		if err := l.GetLog(i, &got); err != nil {
			return err
		}
		want := entry(i)
		if len(want.Extensions) == 0 {
			want.Extensions = nil
		}
		if !reflect.DeepEqual(*want, got) {
			return fmt.Errorf("entry %d is %s", i, cmp.Diff(*want, got))
		}
	}
	return nil
}

func TestLog_KeepsWhatItAcknowledged(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, _ := open(t, cfg)
	if err := check(l, 0, 0); err != nil {
		t.Errorf("a new log %v", err)
	}
	store(t, l, 1, 300)
	steps := []struct {
		from, to    uint64 // deleted
		first, last uint64 // left
	}{
		{0, 0, 1, 300},
		{1, 100, 101, 300},
		{50, 120, 121, 300},
		{281, 400, 121, 280},
		{500, 600, 121, 280},
	}
	for _, s := range steps {
		if err := l.DeleteRange(s.from, s.to); err != nil {
			t.Fatal(err)
		}
		if err := check(l, s.first, s.last); err != nil {
			t.Errorf("after deleting %d to %d: %v", s.from, s.to, err)
		}
	}
	var gone raft.Log
	if err := l.GetLog(120, &gone); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("read a deleted entry: %v", err)
	}
	if err := l.Set([]byte("CurrentTerm"), []byte("12345678")); err != nil {
		t.Fatal(err)
	}
	if err := l.SetUint64([]byte("LastVoteTerm"), 9); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	if _, _, err := raftlog.Open(cfg); err == nil {
		t.Error("opened a log whose beginning is gone, with no snapshot")
	}
}

func TestLog_ReopensAsItWas(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	store(t, l, 1, 200)
	if err := l.SetUint64([]byte("LastVoteTerm"), 9); err != nil {
		t.Fatal(err)
	}
	snapshot(t, s, 150, []byte("state"))
	if err := l.DeleteRange(1, 140); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	l, s = open(t, cfg)
	if err := check(l, 141, 200); err != nil {
		t.Error(err)
	}
	if v, err := l.GetUint64([]byte("LastVoteTerm")); err != nil || v != 9 {
		t.Errorf("got %d, %v", v, err)
	}
	if v, err := l.GetUint64([]byte("nothing")); err != nil || v != 0 {
		t.Errorf("got %d, %v", v, err)
	}
	if err := l.DeleteRange(141, 200); err != nil { // all of it
		t.Fatal(err)
	}
	snapshot(t, s, 500, nil)
	store(t, l, 501, 510) // as after a snapshot from the leader
	shut(t, l)
	l, _ = open(t, cfg)
	if err := check(l, 501, 510); err != nil {
		t.Error(err)
	}
	if err := l.StoreLog(entry(600)); err == nil {
		t.Error("stored an entry after a gap")
	}
	shut(t, l)
}

func TestLog_OfAnotherIsRefusedByName(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, _ := open(t, cfg)
	if err := l.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		t.Fatal(err)
	}
	store(t, l, 1, 3)
	shut(t, l)
	node, cluster := cfg, cfg
	node.NodeID, cluster.ClusterID = "other", "elsewhere"
	for _, other := range []raftlog.Config{node, cluster} {
		_, _, err := raftlog.Open(other)
		want := fmt.Sprintf("%s belongs to another member: it is of %q, and this is %q", cfg.Dir, "cluster c member n", "cluster "+other.ClusterID+" member "+other.NodeID)
		if !errors.Is(err, raftlog.ErrForeign) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		// Without the note it is what is sealed that tells.
		if err := os.Truncate(filepath.Join(cfg.Dir, "lock"), 0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := raftlog.Open(other); !errors.Is(err, raftlog.ErrDamaged) {
			t.Errorf("opened another member's log: %v", err)
		}
		for _, noted := range []string{"", "cluster c mem"} { // as a crash leaves it
			if err := os.WriteFile(filepath.Join(cfg.Dir, "lock"), []byte(noted), 0o600); err != nil {
				t.Fatal(err)
			}
			l, _ := open(t, cfg)
			if err := check(l, 1, 3); err != nil {
				t.Error(err)
			}
			shut(t, l)
		}
	}
}

func snapshot(tb testing.TB, s *raftlog.Snapshots, index uint64, state []byte) string {
	tb.Helper()
	k, err := s.Create(raft.SnapshotVersionMax, index, 3, raft.Configuration{Servers: []raft.Server{{ID: "n", Address: canary}}}, 1, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := k.Write(state); err != nil {
		tb.Fatal(err)
	}
	if err := k.Close(); err != nil {
		tb.Fatal(err)
	}
	return k.ID()
}

func TestSnapshots_AreWholeOrNotThere(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	defer shut(t, l)
	state := bytes.Repeat([]byte(canary), 20_000)
	for i, size := range []int{0, 1, 64 << 10, len(state)} {
		id := snapshot(t, s, uint64(10+i), state[:size])
		meta, r, err := s.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, state[:size]) {
			t.Errorf("got %d of %d bytes, %v", len(got), size, err)
		}
		if meta.Size != int64(size) || meta.Index != uint64(10+i) || meta.Term != 3 || meta.Configuration.Servers[0].Address != canary {
			t.Errorf("got %+v", meta)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	k, err := s.Create(1, 99, 3, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = k.Write(state); err != nil {
		t.Fatal(err)
	}
	metas, err := s.List()
	if err != nil || len(metas) != 2 || metas[0].Index != 13 || metas[1].Index != 12 {
		t.Errorf("got %v, %v", metas, err)
	}
	if err = errors.Join(k.Cancel(), k.Cancel(), k.Close()); err != nil {
		t.Errorf("cancel: %v", err)
	}
	files, err := os.ReadDir(filepath.Join(cfg.Dir, "snapshots"))
	if err != nil || len(files) != 2 {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestLog_HoldsNothingReadable(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	store(t, l, 1, 50)
	snapshot(t, s, 40, []byte(strings.Repeat(canary, 10)))
	if err := l.Set([]byte("LastVoteCand"), []byte(canary)); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	n := 0
	err := filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(canary)) {
			t.Errorf("%s can be read", path)
		}
		return err
	})
	if err != nil || n != 3 {
		t.Errorf("looked at %d files: %v", n, err)
	}
}

func TestLog_IsOpenedOnceAndNoticesThatItIsGone(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	if _, _, err := raftlog.Open(cfg); !errors.Is(err, raftlog.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	store(t, l, 1, 10)
	snapshot(t, s, 9, nil)
	shut(t, l)
	l, _ = open(t, cfg)
	shut(t, l)
	file := filepath.Join(cfg.Dir, "raft.db")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftlog.Open(cfg); !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("opened a snapshot without a log: %v", err)
	}
	// Nor does it begin anew where there was no snapshot yet.
	cfg = config(t, t.TempDir())
	l, _ = open(t, cfg)
	shut(t, l)
	if err := os.Remove(filepath.Join(cfg.Dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftlog.Open(cfg); !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("began anew: %v", err)
	}
}

func TestLog_RefusesWorkAfterAFailure(t *testing.T) {
	cfg := config(t, t.TempDir())
	var told []error
	cfg.Failed = func(err error) { told = append(told, err) }
	l, s := open(t, cfg)
	store(t, l, 1, 5)
	shut(t, l) // the file is gone under it
	err := l.StoreLog(entry(6))
	if err == nil {
		t.Fatal("stored in a closed file")
	}
	if got := l.SetUint64([]byte("k"), 1); !errors.Is(got, err) {
		t.Errorf("went on after a failure: %v", got)
	}
	if _, created := s.Create(1, 1, 1, raft.Configuration{}, 1, nil); created == nil {
		t.Error("began a snapshot after a failure")
	}
	if len(told) != 1 || !errors.Is(told[0], err) {
		t.Errorf("told %v", told)
	}
}

func TestLog_OfANewerFormatIsNotTouched(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, _ := open(t, cfg)
	store(t, l, 1, 5)
	if err := l.SetUint64([]byte("skep format"), 1); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	db, err := raftboltdb.NewBoltStore(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := object.Encode(map[string][]byte{"skep format": {0, 0, 0, 0, 0, 0, 0, 2}})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Set([]byte("stable"), cfg.Keyring.Seal(seal.Domain("raft stable", cfg.ClusterID, cfg.NodeID), plain))
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	_, _, err = raftlog.Open(cfg)
	if !errors.Is(err, raftlog.ErrNewer) || errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}
