// Package cli is the command line: docker's own commands under the name of
// skep, against the node of this machine unless told otherwise, and the few
// that docker has no word for (boot, hello, status, config check).
//
// It promises docker's flags, output and exit codes for docker's commands.
// Help texts name skep; the environment variables and the configuration
// directory are docker's, so that credentials and contexts are shared.
//
// It links all of docker/cli: only main may import it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/version"
	"github.com/spf13/cobra"

	"skep/admin/cli/hello"
	"skep/appliance/config"
)

// DefaultHost is where the node of this machine listens.
const DefaultHost = "unix:///run/skep.sock"

// Config is what the command line cannot know by itself.
type Config struct {
	// Version and Commit are those of the product, Built is when it was built.
	Version, Commit, Built string
	// Boot runs this machine as a node until ctx ends.
	Boot func(ctx context.Context, configPath string) error
	// Reset takes this machine's node, which does not run, off the machine.
	Reset func(ctx context.Context, configPath string) error
	// Stdin, Stdout and Stderr are the process's own, usually.
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
}

// interrupted is why a command ended that was told to by a signal.
type interrupted struct{ signal syscall.Signal }

// Error is empty, for there is nothing to tell: the user knows.
func (interrupted) Error() string { return "" }

// Run runs one command, given without the program's name, and returns the exit
// code of the process.
func Run(ctx context.Context, c Config, args []string) int {
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	run := c.docker
	if own(args) {
		run = c.own
	}
	done := make(chan error, 1)
	// Not waited for after the third signal: a command that does not listen
	// must not keep the process.
	go func() { done <- run(ctx, args) }()
	for received := 0; ; {
		select {
		case err := <-done:
			return c.report(err)
		case s := <-signals:
			if received++; received == 3 {
				_, _ = fmt.Fprint(c.Stderr, "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n")
				return 1
			}
			sig, _ := s.(syscall.Signal)
			cancel(interrupted{sig})
		}
	}
}

// ending is an error that says with what code the process is to end.
type ending interface {
	error
	ExitStatus() int
}

// report tells the user of an error and is the exit code for it.
func (c Config) report(err error) int {
	if sig, ok := errors.AsType[interrupted](err); ok {
		return 128 + int(sig.signal)
	}
	if exit, ok := errors.AsType[*hello.ExitError](err); ok {
		return exit.Code
	}
	if err == nil || errdefs.IsCanceled(err) {
		return 0
	}
	if err.Error() != "" {
		_, _ = fmt.Fprintln(c.Stderr, err)
	}
	if end, ok := errors.AsType[ending](err); ok {
		return end.ExitStatus()
	}
	if _, ok := errors.AsType[*config.Error](err); ok {
		return 2
	}
	if status, ok := errors.AsType[dockercli.StatusError](err); ok && status.StatusCode != 0 {
		return status.StatusCode
	}
	return 1
}

// own tells whether a command is one of ours that start often or early, and
// need none of docker's. Their help is printed the slow way.
func own(args []string) bool {
	if len(args) == 0 || args[0] != "boot" && args[0] != "reset" && args[0] != "hello" {
		return false
	}
	for _, a := range args[1:] {
		if a == "--help" || a == "-h" {
			return false
		}
	}
	return true
}

func (c Config) own(ctx context.Context, args []string) error {
	root := &cobra.Command{Use: "skep", SilenceErrors: true, SilenceUsage: true}
	root.SetFlagErrorFunc(dockercli.FlagErrorFunc)
	root.AddCommand(bootCommand(c), resetCommand(c), helloCommand(c))
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

func (c Config) docker(ctx context.Context, args []string) error {
	version.Version, version.GitCommit, version.BuildTime = c.Version, c.Commit, c.Built
	docker, err := command.NewDockerCli(
		command.WithBaseContext(ctx),
		command.WithInputStream(c.Stdin),
		command.WithOutputStream(c.Stdout),
		command.WithErrorStream(c.Stderr),
		command.WithUserAgent("skep/"+c.Version),
	)
	if err != nil {
		return err
	}
	// A command that is left behind must not leave the terminal raw.
	defer docker.In().RestoreTerminal()
	defer docker.Out().RestoreTerminal()
	root, opts := newRoot(c, docker)
	top := dockercli.NewTopLevelCommand(root, docker, opts, root.Flags())
	top.SetArgs(args)
	cmd, rest, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	chooseHost(opts)
	if err := top.Initialize(c.output(cmd, rest)); err != nil {
		return err
	}
	cmd.SetArgs(rest)
	return cmd.ExecuteContext(ctx)
}

// output is where a command writes to: some are made to name skep.
func (c Config) output(root *cobra.Command, args []string) command.CLIOption {
	if cmd, _, err := root.Find(args); err == nil && tells(cmd) {
		return command.WithOutputStream(renaming{c.Stdout})
	}
	return command.WithOutputStream(c.Stdout)
}
