// Skep is a container cluster in one binary: it runs as the node, inside its
// containers' first moments, and as the command line. This file finds out
// which of them was meant.
package main

import (
	"context"
	"os"

	"skep/admin/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), cli.Config{
		Version: "dev", Commit: "unknown",
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}, os.Args[1:]))
}
