package shim

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Plan says what shim to start.
type Plan struct {
	// Exe is the binary, this one or a copy of it.
	Exe string
	// Name appears in the list of processes.
	Name string
	// RunDir is an empty directory, the shim's own.
	RunDir string
	// LogDir takes the log; empty means that output is not logged.
	LogDir string
	// MaxSize of a log file in bytes, 0 for no limit; MaxFiles counts the
	// current one too.
	MaxSize  int64
	MaxFiles int
	// Terminal and Stdin give the process a terminal, or an open stdin.
	Terminal, Stdin bool
	// Listen lets later connections come by Dial.
	Listen bool
	// Mounts gives the creator a mount namespace of its own.
	Mounts bool
	Job    []byte
	// Wants are the connections that the shim starts with: they miss nothing.
	Wants []Want
}

// Process is a shim that was started here.
type Process struct {
	// PID is the process in the container.
	PID int
	// Conns are what the plan's Wants asked for.
	Conns []*Conn
	cmd   *exec.Cmd
}

// CreateError is why the creator made no container.
type CreateError struct{ Text string }

func (e *CreateError) Error() string { return e.Text }

// Start starts a shim and returns when its creator is done. The shim stays
// when ctx ends after that.
func Start(ctx context.Context, p Plan) (_ *Process, err error) {
	files := fileSet{}
	defer files.close()
	proc := &Process{}
	defer func() {
		if err != nil {
			proc.close()
		}
	}()

	files.add(os.OpenFile(p.RunDir, unix.O_DIRECTORY|os.O_RDONLY, 0))
	files.add(openOrNull(p.LogDir, unix.O_DIRECTORY|os.O_RDONLY))
	files.add(p.listen())
	files.add(memfd(p.Job))
	told, sync, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer told.Close()
	files.add(sync, nil)
	for _, w := range p.Wants {
		conn, theirs, failed := pair()
		files.add(theirs, failed)
		if failed == nil {
			proc.Conns = append(proc.Conns, conn)
			files.add(nil, conn.Hello(w))
		}
	}
	if files.err != nil {
		return nil, fmt.Errorf("start shim: %w", files.err)
	}
	stderr, err := os.OpenFile(filepath.Join(p.RunDir, "err"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer stderr.Close()

	// Not CommandContext: the shim outlives whoever asked for it.
	proc.cmd = &exec.Cmd{
		Path: p.Exe, Args: []string{"skep", "shim", p.Name},
		// The creator is short-lived: it never collects garbage, and one
		// thread at a time wakes the fewest others. Its init inherits that.
		Env:         []string{Variable + "=" + p.args(), "GOGC=off", "GOMAXPROCS=1"},
		Stderr:      stderr,
		ExtraFiles:  files.list,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := proc.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	files.close()
	return proc, proc.await(ctx, p.RunDir, told)
}

// await hears from the creator.
func (p *Process) await(ctx context.Context, runDir string, told *os.File) error {
	stop := context.AfterFunc(ctx, func() { told.Close() })
	defer stop()
	var b [maxSync]byte
	n, err := told.Read(b[:])
	if n == 0 {
		p.Kill()
		if ctx.Err() != nil {
			return fmt.Errorf("start shim: %w", context.Cause(ctx))
		}
		return fmt.Errorf("start shim: creator said nothing (%w): %s", err, lastWords(runDir))
	}
	if b[0] == 'p' {
		p.PID, err = strconv.Atoi(string(b[1:n]))
		return err
	}
	p.Kill()
	return &CreateError{Text: string(b[1:n])}
}

// Kill ends the shim and with it a creator at work; not the container.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	p.Reap()
	p.close()
}

// Reap takes the shim's own exit status. It is called when a connection has
// ended, and then takes no time. The other connections may hold output that
// was not read yet: they are closed by their readers.
func (p *Process) Reap() {
	_ = p.cmd.Wait() // what counts is in the file "exit"
}

func (p *Process) close() {
	for _, c := range p.Conns {
		c.Close()
	}
}

func (p Plan) args() string {
	flags := 0
	for bit, on := range map[int]bool{
		C.SHIM_TTY: p.Terminal, C.SHIM_STDIN: p.Stdin, C.SHIM_LOG: p.LogDir != "",
		C.SHIM_LISTEN: p.Listen, C.SHIM_MOUNTS: p.Mounts,
	} {
		if on {
			flags |= bit
		}
	}
	return fmt.Sprintf("%d %d %d %d", flags, p.MaxSize, p.MaxFiles, len(p.Wants))
}

// listen binds the shim's socket. The shim inherits it, ready to be dialled.
func (p Plan) listen() (*os.File, error) {
	if !p.Listen {
		return os.Open(os.DevNull)
	}
	d, err := os.Open(p.RunDir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	addr := net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/attach", Net: "unixpacket"}
	l, err := net.ListenUnix("unixpacket", &addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// fileSet collects files to hand on, and the first error met on the way.
type fileSet struct {
	list []*os.File
	err  error
}

func (s *fileSet) add(f *os.File, err error) {
	s.err = errors.Join(s.err, err)
	if f != nil {
		s.list = append(s.list, f)
	}
}

func (s *fileSet) close() {
	for _, f := range s.list {
		f.Close()
	}
	s.list = nil
}

func openOrNull(path string, flag int) (*os.File, error) {
	if path == "" {
		return os.Open(os.DevNull)
	}
	return os.OpenFile(path, flag, 0)
}

// memfd holds a job in memory: it may be secret and never touches a disk.
func memfd(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("job", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "job")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("write job: %w", err)
	}
	return f, nil
}

// pair is a connection and the shim's end of it.
func pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "shim"), os.NewFile(uintptr(fds[1]), "shim")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return &Conn{c: c}, theirs, nil
}

func lastWords(runDir string) string {
	b, err := os.ReadFile(filepath.Join(runDir, "err"))
	if err != nil {
		return err.Error()
	}
	return string(b[:min(len(b), 2000)])
}
