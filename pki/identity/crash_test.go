package identity_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/pki/identity"
	"skep/pki/seal"
)

// TestMain is also the process that the tests kill: it updates for ever and
// says what it was promised.
func TestMain(m *testing.M) {
	dir := os.Getenv("IDENTITY_TEST_DIR")
	if dir == "" {
		m.Run()
		return
	}
	version, err := strconv.ParseUint(os.Getenv("IDENTITY_TEST_VERSION"), 10, 64)
	if err == nil {
		err = work(dir, version)
	}
	fmt.Fprintln(os.Stdout, err)
}

// work never ends but with an error.
func work(dir string, version uint64) error {
	k, err := identity.Open(dir)
	if errors.Is(err, identity.ErrLocked) {
		k, err = identity.Unlock(dir, unlockKey(version))
	}
	if err == nil && os.Getenv("IDENTITY_TEST_WORK") == "rekey" {
		return rekey(k)
	}
	for err == nil {
		if err = k.Update(setNode("n")); err == nil {
			fmt.Fprintln(os.Stdout, k.State().Epoch)
		}
	}
	return err
}

// files reads a directory as it would be found after a crash.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, e := range entries {
		if out[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// opens makes a directory of these files and opens its keystore.
func opens(t *testing.T, in map[string][]byte) identity.State {
	t.Helper()
	dir := t.TempDir()
	for name, b := range in {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := open(t, dir)
	s := k.State()
	update(t, k, setNode("after"))
	closeNow(t, k)
	if got := open(t, dir).State(); got.NodeID != "after" {
		t.Errorf("got %+v", got)
	}
	return s
}

func TestKeystore_IsWholeAfterACrashAtEveryStep(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	update(t, k, setNode("old"))
	before := files(t, dir)
	update(t, k, setNode("new"))
	after := files(t, dir)

	// While the new file is written, of which any part may be there.
	for cut := 0; cut <= len(after["keystore"]); cut += 7 {
		got := opens(t, map[string][]byte{
			"kek": before["kek"], "keystore": before["keystore"], "keystore.tmp": after["keystore"][:cut],
		})
		if got.NodeID != "old" {
			t.Errorf("cut at %d: got %q", cut, got.NodeID)
		}
	}
	// When it has the name, but its maker did not learn that.
	if got := opens(t, after); got.NodeID != "new" {
		t.Errorf("got %q", got.NodeID)
	}
	// At the first start: no key, half a key, a key but no keystore.
	for _, in := range []map[string][]byte{
		{},
		{"kek.tmp": before["kek"][:5]},
		{"kek": before["kek"]},
		{"kek": before["kek"], "keystore.tmp": before["keystore"][:9]},
	} {
		if got := opens(t, in); got.NodeID != "" || len(got.DEKs) != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

// unlockKey is the n-th of the keys that the killed process locks with.
func unlockKey(n uint64) seal.Secret { return seal.Secret(bytes.Repeat([]byte{byte(n)}, seal.KeySize)) }

// rekey is the process that changes every key for ever, and says how far it is.
// Its updates note which key the next lock will be of.
func rekey(k *identity.Keystore) error {
	for {
		version := k.State().KEKVersion + 1
		lock := func() error { return k.Lock(unlockKey(version), version) }
		if version%3 == 0 {
			lock = func() error { return k.Unlocked(version) }
		}
		for _, step := range []func() error{lock, k.AddDEK, func() error { return k.Update(setNode("n")) }, k.RetireDEKs} {
			if err := step(); err != nil {
				return err
			}
		}
		fmt.Fprintln(os.Stdout, version)
	}
}

// reopen opens a keystore that a process left that was killed after version had
// been set and while the next one was being set, maybe.
func reopen(t *testing.T, dir string, version uint64) *identity.Keystore {
	t.Helper()
	k, err := identity.Open(dir)
	for next := version; errors.Is(err, identity.ErrLocked) && next <= version+1; next++ {
		var wrong error
		if k, wrong = identity.Unlock(dir, unlockKey(next)); wrong == nil {
			return k
		} else if !errors.Is(wrong, identity.ErrWrongKey) {
			t.Fatal(wrong)
		}
	}
	if err != nil {
		t.Fatalf("after version %d: %v", version, err)
	}
	return k
}

func TestKeystore_SurvivesSIGKILLWhileItsKeysChange(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	update(t, k, setNode("n"))
	closeNow(t, k)
	var last uint64
	for range 20 {
		said := killed(t, dir, "rekey", last)
		k := reopen(t, dir, max(last, said))
		s := k.State()
		if s.KEKVersion < said || s.KEKVersion > said+1 || s.NodeID != "n" || s.Locked != (s.KEKVersion%3 != 0) {
			t.Fatalf("promised %d, found %d, locked %t", said, s.KEKVersion, s.Locked)
		}
		if secrets := k.Keyring().Secrets(); len(secrets) != len(s.DEKs) || !bytes.Equal(secrets[0], s.DEKs[0]) {
			t.Error("the keyring is not the state's")
		}
		last = s.KEKVersion
		closeNow(t, k)
	}
	if last == 0 {
		t.Error("no key was ever changed")
	}
}

func TestKeystore_SurvivesSIGKILL(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	for range 20 {
		last = killed(t, dir, "update", last)
		k := open(t, dir)
		if got := k.State().Epoch; got < last || got > last+1 {
			t.Fatalf("promised %d, found %d", last, got)
		}
		last = k.State().Epoch
		closeNow(t, k)
	}
	if last == 0 {
		t.Error("no update was ever promised")
	}
}

// killed runs this program for a while and returns the last number that it
// promised, or last if it promised none.
func killed(t *testing.T, dir, work string, last uint64) uint64 {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"IDENTITY_TEST_DIR=" + dir, "IDENTITY_TEST_WORK=" + work, "IDENTITY_TEST_VERSION=" + strconv.FormatUint(last, 10)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Duration(10+rand.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		// The last line may be cut short, which makes the number smaller.
		n, err := strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64)
		if err != nil {
			t.Errorf("the process says %q", lines.Text())
		}
		last = max(last, n)
	}
	_ = cmd.Wait()
	return last
}
