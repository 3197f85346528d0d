package identity_test

import (
	"bufio"
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
)

// TestMain is also the process that the tests kill: it updates for ever and
// says what it was promised.
func TestMain(m *testing.M) {
	dir := os.Getenv("IDENTITY_TEST_DIR")
	if dir == "" {
		m.Run()
		return
	}
	k, err := identity.Open(dir)
	for err == nil {
		if err = k.Update(setNode("n")); err == nil {
			fmt.Fprintln(os.Stdout, k.State().Epoch)
		}
	}
	fmt.Fprintln(os.Stdout, err)
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

func TestKeystore_SurvivesSIGKILL(t *testing.T) {
	dir := t.TempDir()
	last := 0
	for range 20 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = []string{"IDENTITY_TEST_DIR=" + dir}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(10+rand.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			// The last line may be cut short, which makes the number smaller.
			n, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
			if err != nil {
				t.Errorf("the process says %q", lines.Text())
			}
			last = max(last, n)
		}
		_ = cmd.Wait()
		kill.Stop()
		k := open(t, dir)
		if got := int(k.State().Epoch); got < last || got > last+1 {
			t.Fatalf("promised %d, found %d", last, got)
		}
		last = int(k.State().Epoch)
		closeNow(t, k)
	}
	if last == 0 {
		t.Error("no update was ever promised")
	}
}
