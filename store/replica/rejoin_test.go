package replica_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// onDisks is a group of three on real files and TCP whose leader's log is short.
func onDisks(t *testing.T) (*group, *mesh, []replica.Config) {
	t.Helper()
	dir, net := t.TempDir(), new(mesh)
	configs := make([]replica.Config, 3)
	g := newGroup(t, 3, func(i int) replica.Config {
		configs[i] = onDisk(t, net, dir, i)
		configs[i].Timing = replica.Timing{SnapshotThreshold: 50, SnapshotInterval: 50 * time.Millisecond, TrailingLogs: 10}
		return configs[i]
	})
	return g, net, configs
}

func fill(t *testing.T, m *replica.Member, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		write(t, m, func(tx *store.Tx) {
			s := secret(fmt.Sprintf("%04d", n), fmt.Sprintf("s%04d", n))
			s.Spec.Data = make([]byte, 3000) // for a snapshot of many chunks
			tx.Create(s)
		})
	}
}

// caughtUp waits for a member to know what another knows.
func caughtUp(t *testing.T, m, leader *replica.Member) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		news := m.News()
		if m.Snapshot().Index >= leader.Snapshot().Index {
			break
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("at %d, the leader at %d", m.Snapshot().Index, leader.Snapshot().Index)
		}
	}
	if diff := different(m, leader); diff != "" {
		t.Error(diff)
	}
}

func different(a, b *replica.Member) string {
	for s := range b.Snapshot().Secrets.All() {
		got, ok := a.Snapshot().Secrets.Get(s.ID)
		if !ok || got.Spec.Name != s.Spec.Name || len(got.Spec.Data) != len(s.Spec.Data) || got.Version != s.Version {
			return fmt.Sprintf("secret %s differs or is missing", s.ID)
		}
	}
	if a.Snapshot().Secrets.Len() != b.Snapshot().Secrets.Len() {
		return "there are more secrets"
	}
	return ""
}

func TestMember_ThatIsFarBehindGetsASnapshot(t *testing.T) {
	g, net, configs := onDisks(t)
	l := g.leader()
	behind := (l + 1) % 3
	fill(t, g.members[l], 0, 20)
	caughtUp(t, g.members[behind], g.members[l])
	g.stop(behind)
	fill(t, g.members[l], 20, 400)

	cfg := configs[behind]
	cfg.Timing = replica.Timing{} // takes none of its own
	cfg.Transport = replica.NewTransport(net.layer(t, cfg.NodeID), cfg.Logger)
	g.start(behind, cfg)
	caughtUp(t, g.members[behind], g.members[l])
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*.snap"))
	if err != nil {
		t.Fatal(err)
	}
	installed := false
	for _, f := range files {
		var term, index int
		if _, err := fmt.Sscanf(filepath.Base(f), "%d-%d-", &term, &index); err != nil {
			t.Fatal(err)
		}
		installed = installed || index > 60
	}
	if !installed {
		t.Errorf("it was sent no snapshot: %v", files)
	}
	fill(t, g.members[l], 400, 410)
	caughtUp(t, g.members[behind], g.members[l])
	g.stop(behind) // and its log and snapshot are good
	cfg.Transport = replica.NewTransport(net.layer(t, cfg.NodeID), cfg.Logger)
	g.start(behind, cfg)
	caughtUp(t, g.members[behind], g.members[l])
}

func TestMember_WithADamagedLogIsReplacedByAnother(t *testing.T) {
	g, net, configs := onDisks(t)
	l := g.leader()
	bad := (l + 1) % 3
	fill(t, g.members[l], 0, 30)
	caughtUp(t, g.members[bad], g.members[l])
	g.stop(bad)

	cfg := configs[bad]
	file := filepath.Join(cfg.Dir, "raft.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 3 * 4096; i < len(b); i += 512 {
		b[i] ^= 1
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Transport = replica.NewTransport(net.layer(t, cfg.NodeID), cfg.Logger)
	if _, err := replica.Open(cfg); !errors.Is(err, replica.ErrDamaged) {
		t.Fatalf("got %v", err)
	}

	leader := g.members[l]
	if err := leader.Remove(t.Context(), cfg.ID); err != nil {
		t.Fatal(err)
	}
	cfg.ID, cfg.Dir = object.NewID(), cfg.Dir+".new"
	g.start(bad, cfg)
	if err := leader.AddNonvoter(t.Context(), cfg.ID, cfg.NodeID); err != nil {
		t.Fatal(err)
	}
	<-g.members[bad].Ready() // one that has no vote hears of the leader too
	caughtUp(t, g.members[bad], leader)
	if err := leader.AddVoter(t.Context(), cfg.ID, cfg.NodeID); err != nil {
		t.Fatal(err)
	}
	g.stop(l)
	write(t, g.members[g.leader(l)], func(tx *store.Tx) { tx.Create(secret("x", "x")) })
}
