// Package shim is the small process between the node and each container.
//
// It is written in C and runs from a constructor, before the Go runtime would
// start: a shim costs about a hundred kilobytes. It keeps its container's
// output and exit status, whatever becomes of the node's own process.
package shim

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Install places a copy of the running binary at dir/<version>-<hash>/skep, if
// it is not there, and removes copies from which nothing runs any more. Shims
// run from the copy, so that an upgrade does not pull their binary away.
func Install(dir, version string) (exe string, err error) {
	return "", fmt.Errorf("install in %s: %w", dir, errdefs.ErrNotImplemented)
}
