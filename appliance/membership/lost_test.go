package membership_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReplica_ThatLostItsDiskComesBackAsAnother: one that forgot what it voted
// and stored would break the promises that it made under its name.
func TestReplica_ThatLostItsDiskComesBackAsAnother(t *testing.T) {
	w := &world{T: t}
	m1, m2, m3 := w.add("m1"), w.add("m2"), w.add("m3")
	m1.init()
	m2.join(m1.tokens().Manager, m1)
	m3.join(m1.tokens().Manager, m1)
	formed := m1.sees("m1 manager ready reachable leader", "m2 manager ready reachable", "m3 manager ready reachable")
	w.until("formed", formed)
	w.until("with three votes", func() bool { return m1.Voters() == 3 })
	for name, lose := range map[string]func(dir string) error{
		"gone":    os.RemoveAll,
		"damaged": func(dir string) error { return os.Remove(filepath.Join(dir, "raft.db")) },
	} {
		t.Run(name, func(t *testing.T) {
			before := m3.keys.State().RaftID
			dir := filepath.Join(m3.dir, "raft", before)
			m3.shut() // which writes a snapshot
			if err := lose(dir); err != nil {
				t.Fatal(err)
			}
			m3.start()
			w.until("it is another", func() bool {
				now := m3.keys.State().RaftID
				replicas := m1.Replicas()
				return now != "" && now != before && slices.Contains(replicas, now) && !slices.Contains(replicas, before)
			})
			w.until("back", formed)
			w.until("with its vote", func() bool { return m1.Voters() == 3 })
			if left, _ := os.ReadDir(filepath.Join(m3.dir, "raft")); len(left) != 1 {
				t.Errorf("it has %v", left)
			}
		})
	}
	t.Run("the only manager's", func(t *testing.T) {
		alone := w.add("alone")
		alone.init()
		dir := filepath.Join(alone.dir, "raft", alone.keys.State().RaftID)
		alone.shut()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		alone.start()
		err := <-alone.done
		alone.stop()
		if kerr := alone.keys.Close(); kerr != nil {
			t.Error(kerr)
		}
		alone.stop = nil
		if err == nil || !strings.Contains(err.Error(), "the swarm's state is gone from "+dir) {
			t.Errorf("it ends with %v", err)
		}
	})
}
