package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func save(tb testing.TB, s *store.Snapshot) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := s.Save(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// history is a list of valid and invalid commands, made of a seed.
func history(tb testing.TB, seed uint64, steps int) (commands [][]byte, end *storetest.Local) {
	tb.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	db := storetest.New(tb)
	start := time.Unix(1e9, 0)
	old := db.Snapshot()
	for i := range steps {
		base := db.Snapshot()
		if r.IntN(8) == 0 {
			base = old // a late writer
		} else if r.IntN(4) == 0 {
			old = base
		}
		tx := store.Begin(base)
		for range 1 + r.IntN(4) {
			id := fmt.Sprint("id", r.IntN(20))
			if r.IntN(2) == 0 {
				change(tx, r, id, base.Tasks, func() *object.Task {
					return &object.Task{ID: id, ServiceID: fmt.Sprint("s", r.IntN(3)), NodeID: fmt.Sprint("n", r.IntN(3)), Slot: r.IntN(9)}
				})
				continue
			}
			change(tx, r, id, base.Secrets, func() *object.Secret { return secret(id, fmt.Sprint("N", r.IntN(30))) })
		}
		b, err := tx.Encode(start.Add(time.Duration(i) * time.Second))
		if err != nil {
			tb.Fatal(err)
		}
		commands = append(commands, b)
		_, _ = db.Propose(tb.Context(), tx) // some are refused
	}
	return commands, db
}

func change[T object.Object](tx *store.Tx, r *rand.Rand, id string, t *store.Table[T], fresh func() T) {
	o, ok := t.Get(id)
	switch {
	case !ok:
		tx.Create(fresh())
	case r.IntN(3) == 0:
		tx.Delete(o)
	default:
		n := fresh()
		*n.Metadata() = *o.Metadata()
		tx.Update(n)
	}
}

func TestApply_IsDeterministicAndSnapshotsRestore(t *testing.T) {
	for seed := range uint64(20) {
		commands, _ := history(t, seed, 200)
		a, b := store.New(), store.New()
		var c *store.Store
		var refused int
		for i, cmd := range commands {
			errA := a.Apply(uint64(i+1), cmd)
			errB := b.Apply(uint64(i+1), cmd)
			if fmt.Sprint(errA) != fmt.Sprint(errB) {
				t.Fatalf("seed %d, command %d: %v and %v", seed, i, errA, errB)
			}
			if errA != nil {
				refused++
			}
			if i == len(commands)/2 { // the third starts from a snapshot
				c = store.New()
				if err := c.Restore(bytes.NewReader(save(t, a.Snapshot()))); err != nil {
					t.Fatal(err)
				}
			} else if c != nil {
				if errC := c.Apply(uint64(i+1), cmd); fmt.Sprint(errC) != fmt.Sprint(errA) {
					t.Fatalf("seed %d, command %d: %v, after a restore %v", seed, i, errA, errC)
				}
			}
		}
		if refused == 0 || refused == len(commands) {
			t.Errorf("seed %d: %d of %d commands refused: nothing is tested", seed, refused, len(commands))
		}
		want := save(t, a.Snapshot())
		for name, s := range map[string]*store.Store{"second": b, "restored": c} {
			if !bytes.Equal(want, save(t, s.Snapshot())) {
				t.Errorf("seed %d: the %s store differs", seed, name)
			}
		}
		for _, ix := range []store.Index{store.ByNode, store.ByService} {
			for k := range 3 {
				for _, key := range []string{fmt.Sprint("n", k), fmt.Sprint("s", k)} {
					if diff := cmp.Diff(keys(a.Snapshot().Tasks.By(ix, key)), keys(c.Snapshot().Tasks.By(ix, key))); diff != "" {
						t.Errorf("seed %d: index %s %s differs after a restore: %s", seed, ix, key, diff)
					}
				}
			}
		}
	}
}

func TestRestore_ReplacesAllAndTellsSo(t *testing.T) {
	db := storetest.New(t)
	s := db.Write(t, func(tx *store.Tx) {
		store.CreateService(tx, spec("web", "one"), nil)
		n := new(object.Node)
		n.ID, n.CertRole = "n1", swarm.NodeRoleManager
		tx.Create(n)
		tx.Create(task("a", "s", "n1"))
	})
	other := store.New()
	before := other.Since(0)
	if err := other.Restore(bytes.NewReader(save(t, s))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-before.News:
	default:
		t.Error("no news of a restored state")
	}
	if c := other.Since(s.Index - 1); !c.All || c.Snapshot.Index != s.Index {
		t.Errorf("got %v", c)
	}
	svc, err := other.Snapshot().Services.Find("web")
	if err != nil || other.Snapshot().Revision(svc.ID, svc.SpecVersion) == nil {
		t.Errorf("the service or its revision is lost: %v", err)
	}
	if n, ok := other.Snapshot().Nodes.Get("n1"); !ok || n.CertRole != swarm.NodeRoleManager {
		t.Errorf("got node %v", n)
	}
}

func TestRestore_RefusesWhatIsDamagedAndKeepsTheState(t *testing.T) {
	_, db := history(t, 1, 100)
	good := save(t, db.Snapshot())
	s := store.New()
	for n := range len(good) {
		if err := s.Restore(bytes.NewReader(good[:n])); err == nil {
			t.Fatalf("restored from %d of %d bytes", n, len(good))
		}
	}
	if err := s.Restore(bytes.NewReader(append(bytes.Clone(good), 0))); err == nil {
		t.Error("restored from more than was saved")
	}
	if s.Snapshot().Index != 0 || s.Snapshot().Tasks.Len() != 0 {
		t.Error("a failed restore left something behind")
	}
}

func TestStore_FollowsAModel(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	db := storetest.New(t)
	model := map[string]object.Task{}
	for i := range 10_000 {
		id := fmt.Sprint(r.IntN(50))
		stale := r.IntN(10) == 0
		was, had := model[id]
		x := object.Task{ID: id, Slot: i, NodeID: fmt.Sprint(r.IntN(5))}
		tx := store.Begin(db.Snapshot())
		op := r.IntN(3)
		x.Version = was.Version
		if stale {
			x.Version.Index++
		}
		switch op {
		case 0:
			tx.Create(&x)
		case 1:
			tx.Update(&x)
		default:
			tx.Delete(&x)
		}
		index, err := db.Propose(t.Context(), tx)
		if want := op == 0 && !had || op != 0 && had && !stale; want != (err == nil) {
			t.Fatalf("step %d: op %d on %s: %v, want success %v", i, op, id, err, want)
		}
		if err != nil {
			continue
		}
		x.Version.Index = index
		if op == 2 {
			delete(model, id)
		} else {
			model[id] = x
		}
		if i%100 != 0 {
			continue
		}
		s := db.Snapshot()
		byNode := 0
		for n := range 5 {
			for o := range s.Tasks.By(store.ByNode, fmt.Sprint(n)) {
				byNode++
				if o.NodeID != fmt.Sprint(n) {
					t.Fatalf("step %d: task on %s is listed for %d", i, o.NodeID, n)
				}
			}
		}
		if s.Tasks.Len() != len(model) || byNode != len(model) {
			t.Fatalf("step %d: %d tasks, %d by node, want %d", i, s.Tasks.Len(), byNode, len(model))
		}
		for o := range s.Tasks.All() {
			if w := model[o.ID]; o.Slot != w.Slot || o.Version != w.Version {
				t.Fatalf("step %d: task %s is %+v, want %+v", i, o.ID, o, w)
			}
		}
	}
}

func FuzzApply(f *testing.F) {
	commands, db := history(f, 3, 30)
	for _, c := range commands {
		f.Add(c)
	}
	image := save(f, db.Snapshot())
	f.Fuzz(func(t *testing.T, cmd []byte) {
		a, b := store.New(), store.New()
		for _, s := range []*store.Store{a, b} {
			if err := s.Restore(bytes.NewReader(image)); err != nil {
				t.Fatal(err)
			}
		}
		errA, errB := a.Apply(1000, cmd), b.Apply(1000, cmd)
		if fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("%v and %v", errA, errB)
		}
		after := save(t, a.Snapshot())
		if errA != nil && !bytes.Equal(after, image) {
			t.Fatalf("refused, and changed something: %v", errA)
		}
		if !bytes.Equal(after, save(t, b.Snapshot())) {
			t.Fatal("two stores differ")
		}
		if err := store.New().Restore(bytes.NewReader(after)); err != nil {
			t.Fatalf("what was saved does not restore: %v", err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	_, db := history(f, 3, 30)
	f.Add(save(f, db.Snapshot()))
	f.Add(save(f, store.New().Snapshot()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := store.New()
		if s.Restore(bytes.NewReader(b)) != nil {
			return
		}
		once := save(t, s.Snapshot())
		if err := s.Restore(bytes.NewReader(once)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, save(t, s.Snapshot())) {
			t.Fatal("saved differently the second time")
		}
	})
}
