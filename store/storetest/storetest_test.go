package storetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
	"skep/store/storetest"
)

func create(tb testing.TB, p store.Proposer, id string) error {
	tb.Helper()
	tx := store.Begin(p.Snapshot())
	tx.Create(&object.Task{ID: id})
	_, err := p.Propose(tb.Context(), tx)
	return err
}

func TestLocal_IsAProposerInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.New(t)
		got := make(chan int)
		go func() {
			c := db.Since(0)
			<-c.News
			got <- len(db.Since(c.Snapshot.Index).Snapshot.Get(object.KindTask, "a").Key())
		}()
		time.Sleep(time.Hour)
		if err := create(t, db, "a"); err != nil {
			t.Fatal(err)
		}
		if n := <-got; n != 1 {
			t.Errorf("got %d", n)
		}
	})
}

func TestCluster_LosesNothingToPartitionsAndCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		n := 0
		write := func(step string) {
			t.Helper()
			for range 10 {
				if err := create(t, c.Member(c.Leader()), fmt.Sprintf("t%04d", n)); err != nil {
					t.Fatalf("%s: %v", step, err)
				}
				n++
			}
		}
		write("start")

		old := c.Leader()
		c.Partition(old)
		start := time.Now()
		err := create(t, c.Member(old), "lost")
		if !errors.Is(err, errdefs.ErrUnavailable) && err == nil {
			t.Errorf("a leader without a majority acknowledged")
		}
		t.Logf("the cut off leader: %v, after %s", err, time.Since(start))
		fresh := c.Leader()
		if fresh == old {
			t.Fatal("the old leader leads on")
		}
		t.Logf("a new leader after %s", time.Since(start))
		write("after the partition")
		if _, err := c.Member(old).Read(t.Context()); err == nil {
			t.Error("read from a leader that was cut off")
		}
		c.Heal()
		write("healed")

		down := c.Leader()
		c.Crash(down)
		write("after a crash")
		c.Start(down)
		time.Sleep(time.Minute)
		write("back again")
		time.Sleep(time.Minute)

		want := new(bytes.Buffer)
		if err := c.Member(c.Leader()).Snapshot().Save(want); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			got := new(bytes.Buffer)
			if err := c.Member(i).Snapshot().Save(got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want.Bytes(), got.Bytes()) {
				t.Errorf("member %d differs", i)
			}
			for j := range n {
				if _, ok := c.Member(i).Snapshot().Tasks.Get(fmt.Sprintf("t%04d", j)); !ok {
					t.Errorf("member %d lost task %d", i, j)
				}
			}
		}
	})
}

// TestCluster_KeepsItsPromisesUnderRandomFaults lets clients write to whoever
// leads while members are cut off and crash. What was acknowledged is on every
// member in the end, what was refused on none, and all are equal.
func TestCluster_KeepsItsPromisesUnderRandomFaults(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { faults(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func faults(t *testing.T, r *rand.Rand) {
	t.Helper()
	c := storetest.NewCluster(t, 3)
	acked, refused := map[string]bool{}, map[string]bool{}
	n := 0
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
		switch r.IntN(5) {
		case 0:
			c.Partition(r.IntN(3))
		case 1:
			c.Heal()
		case 2:
			c.Crash(r.IntN(3))
		default:
			for i := range 3 {
				c.Start(i)
			}
		}
		for pause := time.Now().Add(time.Duration(r.IntN(8000)) * time.Millisecond); time.Now().Before(pause); time.Sleep(50 * time.Millisecond) {
			m := c.Member(r.IntN(3))
			if m == nil || !m.Leading() {
				continue
			}
			n++
			id := fmt.Sprintf("t%06d", n)
			switch err := create(t, m, id); {
			case err == nil:
				acked[id] = true
			case !errors.Is(err, replica.ErrUnknownOutcome):
				refused[id] = true
			}
		}
	}
	c.Heal()
	for i := range 3 {
		c.Start(i)
	}
	time.Sleep(time.Minute)
	if err := create(t, c.Member(c.Leader()), "last"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	if len(acked) < 100 {
		t.Errorf("only %d writes were acknowledged: nothing is tested", len(acked))
	}
	var want bytes.Buffer
	for i := range 3 {
		var got bytes.Buffer
		s := c.Member(i).Snapshot()
		if err := s.Save(&got); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want = got
		}
		if !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Errorf("members 0 and %d differ", i)
		}
		for id := range acked {
			if _, ok := s.Tasks.Get(id); !ok {
				t.Errorf("member %d lost %s", i, id)
			}
		}
		for id := range refused {
			if _, ok := s.Tasks.Get(id); ok {
				t.Errorf("member %d has %s, which was refused", i, id)
			}
		}
	}
	t.Logf("%d acknowledged, %d refused, %d unknown", len(acked), len(refused), n-len(acked)-len(refused))
}
