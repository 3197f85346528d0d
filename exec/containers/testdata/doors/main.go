// Command doors is a node that has nothing but its doors.
package main

import (
	"os"

	"skep/exec/containers"
)

func main() {
	code, taken := containers.Door()
	if !taken {
		code = 2
	}
	os.Exit(code)
}
