package storetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"skep/store"
	"skep/store/object"
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
		c := storetest.NewCluster(t, storetest.Config{Size: 3})
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

// TestCluster_StopsThoughADiskHangs stops a leader in an orderly way, which
// wants to hand over and to write a snapshot, while its disk does not answer.
func TestCluster_StopsThoughADiskHangs(t *testing.T) {
	storetest.Bubble(t, func(t *testing.T) {
		t.Helper()
		c := storetest.NewCluster(t, storetest.Config{Size: 3})
		i := c.Leader()
		c.Disk(i).Hang()
		go func() { _ = create(t, c.Member(i), "lost") }() // ends with the member
		time.Sleep(time.Second)
		start := time.Now()
		c.Stop(i)
		if took := time.Since(start); took > 40*time.Second {
			t.Errorf("stopped after %s", took)
		}
		if err := create(t, c.Member(c.Leader()), "kept"); err != nil {
			t.Error(err)
		}
	})
}
