package cli

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	"github.com/docker/cli/cli/flags"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// kept are docker's commands that make sense for a node of a swarm.
func kept() []string {
	return []string{
		"attach", "config", "container", "context", "cp", "create", "events", "exec", "history", "image",
		"images", "info", "inspect", "kill", "load", "login", "logout", "logs", "network", "node", "pause",
		"port", "ps", "pull", "push", "rename", "restart", "rm", "rmi", "run", "save", "secret", "service",
		"stack", "start", "stats", "stop", "swarm", "system", "tag", "top", "unpause", "version", "volume", "wait",
	}
}

// dropped are the sub-commands of those that do not.
func dropped() map[string][]string {
	return map[string][]string{
		"image":     {"build", "import"},
		"container": {"commit", "diff", "export"},
	}
}

// newRoot is the whole tree of commands.
func newRoot(c Config, docker *command.DockerCli) (*cobra.Command, *flags.ClientOptions) {
	root := &cobra.Command{
		Use:                   "skep [OPTIONS] COMMAND [ARG...]",
		Short:                 "A container cluster in one binary",
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		Version:               fmt.Sprintf("%s, build %s", c.Version, c.Commit),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("skep: unknown command: skep %s\n\nRun 'skep --help' for more information", args[0])
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return supported(cmd, docker)
		},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())
	opts, _ := dockercli.SetupRootCommand(root)
	root.SetVersionTemplate("skep version {{.Version}}\n")
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	root.Annotations["additionalHelp"] = ""

	adopt(root, docker)
	root.AddCommand(bootCommand(c), resetCommand(c), helloCommand(c), statusCommand(docker))
	for parent, own := range map[string]*cobra.Command{"config": checkCommand(docker), "network": networkCheckCommand(docker)} {
		if cmd, _, err := root.Find([]string{parent}); err == nil {
			cmd.AddCommand(own)
		}
	}
	rename(root)
	gate(root, docker)
	return root, opts
}

// adopt moves docker's commands under root.
func adopt(root *cobra.Command, docker *command.DockerCli) {
	all := &cobra.Command{}
	commands.AddCommands(all, docker)
	for _, cmd := range all.Commands() {
		if !slices.Contains(kept(), cmd.Name()) {
			continue
		}
		for _, sub := range cmd.Commands() {
			if slices.Contains(dropped()[cmd.Name()], sub.Name()) {
				cmd.RemoveCommand(sub)
			}
		}
		all.RemoveCommand(cmd)
		root.AddCommand(cmd)
	}
}

// chooseHost makes the node of this machine the default, in the place of what
// docker would take: its own socket, or the context last chosen for docker.
func chooseHost(opts *flags.ClientOptions) {
	if len(opts.Hosts) > 0 || os.Getenv(client.EnvOverrideHost) != "" {
		return
	}
	chosen := cmp.Or(opts.Context, os.Getenv(command.EnvOverrideContext), command.DefaultContextName)
	if chosen != command.DefaultContextName {
		return
	}
	opts.Context = ""
	opts.Hosts = []string{DefaultHost}
}
