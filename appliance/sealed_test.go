package appliance_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skep/appliance/nodetest"
)

// canary is what may not be found on disk. It is written into every kind of
// object that can hold it.
const canary = "CANARY7f3a9c"

// TestDataDirectory_HoldsNoPlaintext plants canaries in every kind of object
// and in containers, takes a snapshot, kills the node and reads every byte of
// the data directory's file system.
func TestDataDirectory_HoldsNoPlaintext(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "sealed", nodetest.File)
	n.Start(t)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte(canary+"-data"), 0o600); err != nil {
		t.Fatal(err)
	}
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	do := func(args ...string) string { return strings.TrimSpace(docker.Run(args...)) }
	do("secret", "create", "--label", "l="+canary, "s-"+canary, file)
	do("config", "create", "--label", "l="+canary, "c-"+canary, file)
	do("node", "update", "--label-add", "l="+canary, "n1")
	do("service", "create", "-d", "--name", "svc", "--env", "E="+canary, "--label", "l="+canary,
		"--container-label", "l="+canary, "--secret", "source=s-"+canary+",target=key", "--config", "source=c-"+canary+",target=/conf",
		"--hostname", "h", "busybox", "sh", "-c", "sleep 1000; : "+canary)
	do("run", "-d", "--name", "plain-"+canary, "-e", "E="+canary, "-l", "l="+canary, "busybox", "sleep", "1000")
	do("rm", "-f", "plain-"+canary)
	do("run", "-d", "--name", "kept-"+canary, "-e", "E="+canary, "busybox", "sleep", "1000")
	tokens := do("swarm", "join-token", "-q", "manager")
	snapshot(t, n)
	n.Kill(t)

	found := 0
	for _, needle := range []string{canary, tokens, "PRIVATE KEY"} {
		found += search(t, n.Path("data"), needle)
	}
	if found > 0 {
		t.Errorf("%d files hold plaintext", found)
	}
	// The search itself finds what is there.
	if err := os.WriteFile(n.Path("data", "planted"), []byte("x"+canary), 0o600); err != nil {
		t.Fatal(err)
	}
	if search(discard{t}, n.Path("data"), canary) != 1 {
		t.Error("the search does not find a planted canary")
	}
	n.Start(t)
	if got := do("secret", "ls", "--format", "{{.Name}}"); got != "s-"+canary {
		t.Errorf("after the restart the secrets are %q", got)
	}
	do("service", "rm", "svc")
	do("rm", "-f", "kept-"+canary)
	n.Stop(t)
}

// snapshot makes the node write one: it does so before it stops.
func snapshot(t *testing.T, n *nodetest.Node) {
	t.Helper()
	n.Stop(t)
	files, err := filepath.Glob(n.Path("data", "raft", "*", "snapshots", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no snapshot was written: %v", err)
	}
	n.Start(t)
}

// discard keeps what search reports out of the test's result.
type discard struct{ testing.TB }

func (discard) Errorf(string, ...any) {}

// search reports the files below dir, on dir's own file system, that hold needle.
func search(tb testing.TB, dir, needle string) (found int) {
	tb.Helper()
	var root unix.Stat_t
	if err := unix.Stat(dir, &root); err != nil {
		tb.Fatal(err)
	}
	err := walk(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err = unix.Lstat(path, &st); err != nil || st.Dev != root.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return err
		}
		if strings.Contains(path, needle) {
			tb.Errorf("name of %s holds %s", path, needle)
			found++
		}
		if !d.Type().IsRegular() || filepath.Base(path) == "skep" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(data, []byte(needle)) {
			tb.Errorf("%s holds %s", path, needle)
			found++
		}
		return nil
	})
	if err != nil && context.Cause(tb.Context()) == nil {
		tb.Fatal(err)
	}
	return found
}

// walk is filepath.WalkDir where files may come and go.
func walk(dir string, visit fs.WalkDirFunc) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err = visit(path, d, err); errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		return err
	})
}
