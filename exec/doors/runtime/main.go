// Command runtime is what shims, creators and containers' inits run from: the
// doors of the node's binary, and nothing else.
package main

import (
	"fmt"
	"os"

	"skep/exec/doors"
)

func main() {
	code, taken := doors.Door()
	if !taken {
		fmt.Fprintln(os.Stderr, "this is a part of skep and runs nothing by itself")
		code = 2
	}
	os.Exit(code)
}
