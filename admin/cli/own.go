package cli

import (
	"context"
	"errors"
	"fmt"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"

	"skep/admin/cli/hello"
	"skep/appliance/config"
)

// local marks a command that asks no server, also where its parents do.
const local = "skep-local"

func bootCommand(c Config) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:         "boot [OPTIONS]",
		Short:       "Run this machine as a node",
		Args:        dockercli.NoArgs,
		Annotations: map[string]string{local: ""},

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.Boot == nil {
				return errors.New("boot is not part of this build")
			}
			return ended(cmd.Context(), c.Boot(cmd.Context(), path))
		},
	}
	cmd.Flags().StringVar(&path, "config", "/etc/swarm.yaml", "The node file")
	return cmd
}

func resetCommand(c Config) *cobra.Command {
	var path string
	var force bool
	cmd := &cobra.Command{
		Use:         "reset [OPTIONS]",
		Short:       "Remove a stopped node from this machine: containers, networks and all data",
		Args:        dockercli.NoArgs,
		Annotations: map[string]string{local: ""},

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case c.Reset == nil:
				return errors.New("reset is not part of this build")
			case !force:
				return errors.New("this removes the node's containers, volumes, images and its part in its swarm for good; use --force to confirm")
			}
			return ended(cmd.Context(), c.Reset(cmd.Context(), path))
		},
	}
	cmd.Flags().StringVar(&path, "config", "/etc/swarm.yaml", "The node file")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do it")
	return cmd
}

func helloCommand(c Config) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:         "hello [OPTIONS]",
		Short:       "Serve a page that tells who asked, and by which way",
		Args:        dockercli.NoArgs,
		Annotations: map[string]string{local: ""},

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ended(cmd.Context(), hello.Run(cmd.Context(), hello.Config{Listen: listen, Out: c.Stdout}))
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":80", "Address for both TCP and UDP")
	return cmd
}

// ended is err, unless it is only that ctx ended: for what serves until it is
// told to stop, that is success.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		return nil
	}
	return err
}

func checkCommand(docker command.Cli) *cobra.Command {
	return &cobra.Command{
		Use:         "check FILE",
		Short:       "Check a node file and tell everything that is wrong with it",
		Args:        dockercli.ExactArgs(1),
		Annotations: map[string]string{local: ""},

		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := config.Load(args[0]); err != nil {
				return dockercli.StatusError{Cause: err, StatusCode: 2}
			}
			_, err := fmt.Fprintf(docker.Out(), "%s: no problems\n", args[0])
			return err
		},
	}
}
