package shim

/*
#cgo CFLAGS: -O2 -Wall -Wextra
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

// Variable names the environment variable that makes a process a shim. A
// creator still has it: its children must be given an environment of their own.
const Variable = C.SHIM_VARIABLE

// InitPath is where a container's init is mounted: this binary, which knows
// itself by that name.
const InitPath = "/sbin/docker-init"

// Creating reports whether this process was started to create a container.
func Creating() bool { return C.skep_creator != 0 }

// Creator is the files of a creator. With a terminal, Console takes the place
// of Stdin, Stdout and Stderr, which are nil then.
type Creator struct {
	Stdin, Stdout, Stderr, Console *os.File
	job, sync                      *os.File
}

// NewCreator is the creator's side of Start. It is called once.
func NewCreator(terminal bool) *Creator {
	c := &Creator{
		job:  os.NewFile(C.CREATOR_JOB, "job"),
		sync: os.NewFile(C.CREATOR_SYNC, "sync"),
	}
	if terminal {
		c.Console = os.NewFile(C.CREATOR_CONSOLE, "console")
		return c
	}
	c.Stdin = os.NewFile(C.CREATOR_STDIN, "stdin")
	c.Stdout = os.NewFile(C.CREATOR_STDOUT, "stdout")
	c.Stderr = os.NewFile(C.CREATOR_STDERR, "stderr")
	return c
}

// ReadJob returns what the node gave to Start.
func ReadJob() ([]byte, error) {
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(C.CREATOR_JOB))
	if err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	return b, nil
}

// Created tells shim and node of the container's process. The shim learns it
// first: it has to know its child before it becomes one.
func (c *Creator) Created(runDir string, pid int) error {
	tmp := runDir + "/.pid"
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	if err := os.Rename(tmp, runDir+"/pid"); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	// The node may be gone. The container is there all the same.
	_, _ = fmt.Fprintf(c.sync, "p%d", pid)
	return nil
}

// Failed tells the node why there is no container.
func (c *Creator) Failed(err error) {
	text := "e" + err.Error()
	_, _ = c.sync.WriteString(text[:min(len(text), maxSync)]) // nobody else to tell
}

// maxSync is what a pipe takes in one piece.
const maxSync = 4096
