package replica_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skep/store"
	"skep/store/replica"
)

// fullDisk makes the test binary run its tests in a mount namespace of its own.
const fullDisk = "SKEP_TEST_FULL_DISK"

// TestMember_LosesNothingToAFullDisk fills a small file system until the log
// cannot be written, and gives it room again.
func TestMember_LosesNothingToAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	if os.Getenv(fullDisk) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), fullDisk+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=40m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := config(t, filepath.Join(dir, "raft"))
	// It does not see the end coming: other programs fill the disk in a moment.
	cfg.Space = func() (replica.Space, error) { return replica.Space{Free: 1 << 40, Total: 1 << 40}, nil }
	junk := filepath.Join(dir, "junk")
	acked := 0
	for round := range 3 {
		m, err := replica.Open(cfg)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- m.Run(ctx, nil) }()
		<-m.Ready()
		for i := range acked {
			if _, ok := m.Snapshot().Secrets.Get(fmt.Sprint(i)); !ok {
				t.Fatalf("round %d: secret %d was acknowledged and is lost", round, i)
			}
		}
		if err := os.WriteFile(junk, make([]byte, 22<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			tx := store.Begin(m.Snapshot())
			s := secret(fmt.Sprint(acked), fmt.Sprint("s", acked))
			s.Spec.Data = make([]byte, 400<<10)
			tx.Create(s)
			if _, err = m.Propose(t.Context(), tx); err == nil {
				acked++
			}
		}
		t.Logf("round %d: %d acknowledged, then: %v", round, acked, err)
		if err := <-ran; !errors.Is(err, replica.ErrDisk) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("round %d: ended with %v", round, err)
		}
		cancel()
		if err := os.Remove(junk); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", 60+20*round)); err != nil {
			t.Fatal(err)
		}
	}
	if acked == 0 {
		t.Error("nothing was acknowledged: nothing is tested")
	}
}
