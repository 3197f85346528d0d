package appliance_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// TestScripts drives one real node per script by the real docker command line.
func TestScripts(t *testing.T) {
	nodetest.Scripts(t, "testdata", nodetest.Binary(t), dockerCLI(t))
}

// dockerCLI is the path of the docker command line.
func dockerCLI(tb testing.TB) string {
	tb.Helper()
	out, err := exec.Command("../.ci/docker-cli").Output()
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// eventually fails the test unless f becomes true in time.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(nodetest.Patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}
