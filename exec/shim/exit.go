package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Exit is how a process ended.
type Exit struct {
	// Code is the exit code, or 128 and the signal.
	Code int
	Time time.Time
}

// ErrNotCreated is the exit of a shim whose creator failed.
var ErrNotCreated = errors.New("container was not created")

// ReadExit reads how the process of a run directory ended. The error is an
// [fs.ErrNotExist] when nobody knows, or not yet.
func ReadExit(runDir string) (Exit, error) {
	b, err := os.ReadFile(filepath.Join(runDir, "exit"))
	if err != nil {
		return Exit{}, fmt.Errorf("read exit: %w", err)
	}
	return ParseExit(string(b))
}

// ParseExit reads "<code> <wait status> <seconds>.<nanoseconds>".
func ParseExit(text string) (Exit, error) {
	if strings.HasPrefix(text, "create failed ") {
		return Exit{}, ErrNotCreated
	}
	f := strings.Fields(text)
	if len(f) != 3 {
		return Exit{}, fmt.Errorf("read exit: %q is not an exit status", text)
	}
	sec, nsec, _ := strings.Cut(f[2], ".")
	code, err1 := strconv.Atoi(f[0])
	s, err2 := strconv.ParseInt(sec, 10, 64)
	ns, err3 := strconv.ParseInt(nsec, 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Exit{}, fmt.Errorf("read exit: %w", err)
	}
	return Exit{Code: code, Time: time.Unix(s, ns).UTC()}, nil
}

// ReadPID reads the process ID that the creator wrote.
func ReadPID(runDir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(runDir, "pid"))
	if err != nil {
		return 0, fmt.Errorf("read pid: %w", err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read pid: %q is not a process", b)
	}
	return pid, nil
}
