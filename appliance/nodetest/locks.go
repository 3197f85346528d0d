package nodetest

import (
	"bytes"
	"context"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdUnlock gives the node the unlock key that is in a file.
func cmdUnlock(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: unlock FILE")
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := program(ctx, ts, []string{"docker", "swarm", "unlock"})
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(ts.ReadFile(args[0])), &out, &errs
	err := cmd.Run()
	judge(ts, neg, []string{"unlock", args[0]}, out.String(), errs.String(), err)
}

// cmdResealed waits until the node has changed the key of all of its files so
// many times since it was made.
func cmdResealed(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: resealed TIMES")
	}
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	if !Eventually(func() bool { return strings.Count(node(ts).Log(), "sealed all files anew") >= times }) {
		ts.Fatalf("the node did not change its key %d times", times)
	}
}
