package replica_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/pki/seal"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// crashDir makes the test binary a member that writes until it is killed.
const crashDir = "SKEP_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dir))
		return
	}
	m.Run()
}

// writeForEver prints "HAVE n …" for what it found, then "ACK n" for each write
// that was acknowledged.
func writeForEver(dir string) error {
	ring, err := seal.NewKeyring(bytes.Repeat([]byte{9}, seal.KeySize))
	if err != nil {
		return err
	}
	m, err := replica.Open(replica.Config{
		Dir: dir, ID: "m", NodeID: "n", ClusterID: "c", Keyring: ring, Bootstrap: true,
		// So that snapshots are taken and the log is cut all the time.
		Timing: replica.Timing{Heartbeat: 50 * time.Millisecond, SnapshotInterval: 10 * time.Millisecond, SnapshotThreshold: 40, TrailingLogs: 10},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx, nil) }()
	select {
	case <-m.Ready():
	case err := <-ran:
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	next := 0
	fmt.Fprint(out, "HAVE")
	for s := range m.Snapshot().Tasks.All() {
		fmt.Fprint(out, " ", s.ID)
		n, err := strconv.Atoi(s.ID)
		if err != nil {
			return err
		}
		next = max(next, n+1)
	}
	fmt.Fprintln(out)
	if err := out.Flush(); err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := make(chan error, 4)
	for range 4 {
		wg.Go(func() {
			for {
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				tx := store.Begin(m.Snapshot())
				tx.Create(&object.Task{ID: fmt.Sprintf("%08d", n), ServiceID: strings.Repeat("x", n%300)})
				if _, err := m.Propose(ctx, tx); err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Fprintf(os.Stdout, "ACK %08d\n", n)
				mu.Unlock()
			}
		})
	}
	select {
	case err := <-failed:
		return err
	case err := <-ran:
		return err
	}
}

// TestMember_KeepsWhatItAcknowledgedThroughKills kills a writing process at
// random moments, again and again. What it acknowledged is there after each.
func TestMember_KeepsWhatItAcknowledgedThroughKills(t *testing.T) {
	rounds := 110
	if testing.Short() {
		rounds = 10
	}
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	acked := map[string]bool{}
	for round := range rounds {
		have, acks, stderr := crashOnce(t, dir, time.Duration(r.IntN(120))*time.Millisecond)
		if have == nil {
			if stderr != "" {
				t.Fatalf("round %d: %s", round, stderr)
			}
			continue // killed before it was ready
		}
		for id := range acked {
			if !have[id] {
				t.Fatalf("round %d: %s was acknowledged and is lost", round, id)
			}
		}
		for _, id := range acks {
			acked[id] = true
		}
	}
	t.Logf("%d kills, %d acknowledged writes", rounds, len(acked))
	if len(acked) < rounds {
		t.Errorf("only %d writes were acknowledged: nothing is tested", len(acked))
	}
}

// crashOnce runs the writer and kills it some time after it is ready, or
// (every few times) before.
func crashOnce(t *testing.T, dir string, after time.Duration) (have map[string]bool, acks []string, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	var timer *time.Timer
	if after < 10*time.Millisecond {
		timer = time.AfterFunc(5*after, kill) // while it opens
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if ids, ok := strings.CutPrefix(lines.Text(), "HAVE"); ok {
			have = map[string]bool{}
			for id := range strings.FieldsSeq(ids) {
				have[id] = true
			}
			if timer == nil {
				timer = time.AfterFunc(after, kill)
			}
			continue
		}
		if id, ok := strings.CutPrefix(lines.Text(), "ACK "); ok && len(id) == 8 { // the last may be cut off
			acks = append(acks, id)
		}
	}
	if timer != nil {
		timer.Stop()
	}
	kill()
	_ = cmd.Wait() // it was killed
	return have, acks, errs.String()
}
