package replica_test

import (
	"fmt"
	"testing"
	"time"

	"skep/store"
	"skep/store/replica"
)

// TestRecover_KeepsItsStateAgainstThoseWhoReturn makes a new group of a member
// that was cut off while the others went on, and lets these return. Where the
// transport refuses members of another epoch the new group is safe; where it
// does not, it is not.
func TestRecover_KeepsItsStateAgainstThoseWhoReturn(t *testing.T) {
	for _, check := range []bool{true, false} {
		t.Run(fmt.Sprint("epoch=", check), func(t *testing.T) {
			dir, net := t.TempDir(), new(mesh)
			configs := make([]replica.Config, 3)
			g := newGroup(t, 3, func(i int) replica.Config {
				configs[i] = onDisk(t, net, dir, i)
				net.nodes[nodeName(i)].check = check
				return configs[i]
			})
			for n := range 5 {
				write(t, g.members[0], func(tx *store.Tx) { tx.Create(secret(fmt.Sprint("both", n), fmt.Sprint("both", n))) })
			}
			const cut = 2
			for g.members[cut].Snapshot().Index < g.members[0].Snapshot().Index {
				<-g.members[cut].News()
			}
			net.isolate(nodeName(cut), true)
			l := g.leader(cut)
			for n := range 20 {
				write(t, g.members[l], func(tx *store.Tx) { tx.Create(secret(fmt.Sprint("lost", n), fmt.Sprint("lost", n))) })
			}
			g.stop(cut)

			to := onDisk(t, net, dir, cut)
			to.ID, to.Dir = "fresh", to.Dir+".fresh"
			net.nodes[nodeName(cut)].epoch, net.nodes[nodeName(cut)].check = 1, check
			net.isolate(nodeName(cut), true)
			if err := replica.Recover(t.Context(), configs[cut], to); err != nil {
				t.Fatal(err)
			}
			if err := replica.Recover(t.Context(), configs[cut], to); err == nil {
				t.Error("recovered over what was there")
			}
			g.start(cut, to)
			m := g.members[cut]
			<-m.Ready()
			if got := m.Members(); len(got) != 1 || !got[0].Voter || got[0].ID != "fresh" {
				t.Errorf("members: %+v", got)
			}
			if got := m.Snapshot().Secrets.Len(); got != 5 {
				t.Errorf("%d secrets, want 5", got)
			}
			write(t, m, func(tx *store.Tx) { tx.Create(secret("new", "new")) })

			net.isolate(nodeName(cut), false)
			kept := func() bool {
				_, ok := m.Snapshot().Secrets.Get("new")
				return ok && m.Leading() && m.Snapshot().Secrets.Len() == 6
			}
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end) && kept(); {
				<-time.After(50 * time.Millisecond)
			}
			if kept() != check {
				t.Errorf("after the others returned: kept is %v, epochs are looked at: %v", kept(), check)
			}
			if check {
				write(t, m, func(tx *store.Tx) { tx.Create(secret("newer", "newer")) })
			}
		})
	}
}
