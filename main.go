// Skep is a container cluster in one binary: it runs as the node, inside its
// containers' first moments, and as the command line. This file finds out
// which of them was meant.
package main

import (
	"context"
	"os"

	"skep/admin/cli"
	"skep/appliance"
	"skep/exec/doors"
)

func main() {
	if code, taken := doors.Door(); taken {
		os.Exit(code)
	}
	os.Exit(cli.Run(context.Background(), cli.Config{
		Version: appliance.Version,
		Commit:  appliance.Commit,
		Boot: func(ctx context.Context, path string) error {
			return appliance.Boot(ctx, path, os.Stderr)
		},
		Reset: func(ctx context.Context, path string) error {
			return appliance.Reset(ctx, path, os.Stderr)
		},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}, os.Args[1:]))
}
