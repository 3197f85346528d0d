package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skep/store/raftlog"
)

const page = 4096

// TestLog_DamageIsNeverSilent damages the file in many ways. Each time the log
// either does not open, or holds exactly what was stored.
func TestLog_DamageIsNeverSilent(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, _ := open(t, cfg)
	store(t, l, 1, 600)
	if err := l.SetUint64([]byte("LastVoteTerm"), 42); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cfg.Dir, "raft.db")
	older, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	store(t, l, 601, 620)
	shut(t, l)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	used := len(good)
	for used > 0 && good[used-1] == 0 {
		used--
	}
	pages := (used + page - 1) / page
	good = good[:pages*page] // what follows is only prepared
	ways := map[string]func(r *rand.Rand, b []byte) []byte{
		"bit flip":  func(r *rand.Rand, b []byte) []byte { b[r.IntN(used)] ^= 1 << r.IntN(8); return b },
		"zero page": func(r *rand.Rand, b []byte) []byte { clear(pageOf(b, r.IntN(pages))); return b },
		"page written to another's place": func(r *rand.Rand, b []byte) []byte {
			copy(pageOf(b, r.IntN(pages)), pageOf(good, r.IntN(pages)))
			return b
		},
		"page as it was before": func(r *rand.Rand, b []byte) []byte {
			i := r.IntN(min(pages, len(older)/page))
			copy(pageOf(b, i), pageOf(older, i))
			return b
		},
		"cut off":       func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(used)] },
		"noise in page": func(r *rand.Rand, b []byte) []byte { noise(r, pageOf(b, r.IntN(pages))); return b },
		"noise in page header": func(r *rand.Rand, b []byte) []byte {
			noise(r, pageOf(b, r.IntN(pages))[:64])
			return b
		},
	}
	rounds := 80
	if testing.Short() {
		rounds = 20
	}
	for name, damage := range ways {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(len(name))))
			found := 0
			for i := range rounds {
				cfg.Dir = t.TempDir()
				b := damage(r, bytes.Clone(good))
				if err := os.WriteFile(filepath.Join(cfg.Dir, "raft.db"), b, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := reopen(cfg); err != nil {
					if errors.Is(err, errSilent) {
						t.Errorf("round %d: %v", i, err)
					}
					found++
				}
				if err := os.RemoveAll(cfg.Dir); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("noticed %d of %d, the others did no harm", found, rounds)
		})
	}
}

var errSilent = errors.New("silent damage")

// reopen is errSilent if the log opens and is not what it was.
func reopen(cfg raftlog.Config) error {
	done := make(chan error, 1)
	go func() {
		l, _, err := raftlog.Open(cfg)
		if err != nil {
			done <- err
			return
		}
		err = check(l, 1, 620)
		if v, err2 := l.GetUint64([]byte("LastVoteTerm")); err2 != nil || v != 42 {
			err = errors.Join(err, fmt.Errorf("vote %d, %w", v, err2))
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", errSilent, err)
		}
		done <- errors.Join(err, l.Close())
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%w: hangs", errSilent)
	}
}

func pageOf(b []byte, i int) []byte { return b[i*page : (i+1)*page] }

func noise(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func TestSnapshots_DamageIsNeverSilent(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	store(t, l, 1, 10)
	state := bytes.Repeat([]byte("state"), 30_000)
	path := filepath.Join(cfg.Dir, "snapshots", snapshot(t, s, 8, state)+".snap")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		b := bytes.Clone(good)
		switch i % 3 {
		case 0:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 1:
			clear(pageOf(b, r.IntN(len(b)/page)))
		default:
			b = b[:r.IntN(len(b))]
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		metas, err := s.List()
		if err == nil {
			_, _, err = s.Open(metas[0].ID)
		}
		if !errors.Is(err, raftlog.ErrDamaged) {
			t.Errorf("round %d: %v", i, err)
		}
	}
	shut(t, l)
	l, s = open(t, cfg) // the log holds all of it: the member can do without
	if metas, err := s.List(); err != nil || len(metas) != 0 {
		t.Errorf("a damaged snapshot stayed: %v, %v", metas, err)
	}
	if err := check(l, 1, 10); err != nil {
		t.Error(err)
	}

	path = filepath.Join(cfg.Dir, "snapshots", snapshot(t, s, 9, state)+".snap")
	if err := l.DeleteRange(1, 5); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	if err := os.WriteFile(path, good[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftlog.Open(cfg); !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("opened a log that begins at 6 without a snapshot: %v", err)
	}
}

func TestLog_GivesUpDamagedEntriesThatASnapshotCovers(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, s := open(t, cfg)
	store(t, l, 1, 300)
	snapshot(t, s, 290, []byte("state"))
	shut(t, l)
	file := filepath.Join(cfg.Dir, "raft.db")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	gaveUp := 0
	for range 100 {
		b := bytes.Clone(good)
		b[2*page+r.IntN(len(b)-2*page)] ^= 1
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, _, err := raftlog.Open(cfg)
		if err != nil {
			continue // it hit the tree, or one of the last entries
		}
		first, err := l.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		if err := check(l, first, 300); err != nil || first > 291 {
			t.Errorf("from %d: %v", first, err)
		}
		if first > 1 {
			gaveUp++
		}
		shut(t, l)
	}
	if gaveUp == 0 {
		t.Error("no damage was given up: nothing is tested")
	}
}
