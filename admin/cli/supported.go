package cli

import (
	"errors"
	"fmt"

	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// server is what commands are held against. It is asked late: the first call
// of either may speak with the server, and most commands need neither.
type server interface {
	CurrentVersion() string
	ServerInfo() command.ServerInfo
}

// gate makes commands and flags that the server does not have refuse to be
// used, before their arguments are looked at, and hides them in help.
func gate(root *cobra.Command, s server) {
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if err := supported(cmd, s); err != nil {
					return err
				}
				return check(cmd, args)
			}
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(root)

	badFlag := root.FlagErrorFunc()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if refused := supported(cmd, s); refused != nil {
			return refused
		}
		return badFlag(cmd, err)
	})
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if err := supported(cmd, s); err != nil {
			cmd.Println(err)
			return
		}
		hide(cmd, s)
		help(cmd, args)
	})
}

// isLocal tells whether a command needs no server.
func isLocal(cmd *cobra.Command) bool {
	_, ok := cmd.Annotations[local]
	return ok
}

// supported tells why a command or one of the flags that it was given cannot
// be used with the server.
func supported(cmd *cobra.Command, s server) error {
	if isLocal(cmd) {
		return nil
	}
	for c := cmd; c != nil; c = c.Parent() {
		for _, rule := range []string{"version", "ostype", "experimental"} {
			if want, ok := c.Annotations[rule]; ok && lacks(rule, want, s) {
				return fmt.Errorf("%s %s", cmd.CommandPath(), refusal(rule, want, s))
			}
		}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed {
			return
		}
		for _, rule := range []string{"version", "ostype", "experimental"} {
			if want, ok := f.Annotations[rule]; ok && lacks(rule, first(want), s) {
				errs = append(errs, fmt.Errorf(`"--%s" %s`, f.Name, refusal(rule, first(want), s)))
				return
			}
		}
	})
	return errors.Join(errs...)
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// lacks tells whether the server is not what an annotation of docker's
// commands and flags asks for.
func lacks(rule, want string, s server) bool {
	switch rule {
	case "version":
		return want != "" && versions.LessThan(s.CurrentVersion(), want)
	case "ostype":
		is := s.ServerInfo().OSType
		return want != "" && is != "" && is != want
	case "experimental":
		return !s.ServerInfo().HasExperimental
	case "swarm":
		status := s.ServerInfo().SwarmStatus
		return status != nil && (want == "manager" && !status.ControlAvailable ||
			want == "active" && status.NodeState == "inactive")
	}
	return false
}

// refusal is docker's text for it.
func refusal(rule, want string, s server) string {
	switch rule {
	case "version":
		return fmt.Sprintf("requires API version %s, but the Docker daemon API version is %s", want, s.CurrentVersion())
	case "ostype":
		return fmt.Sprintf("is only supported on a Docker daemon running on %s, but the Docker daemon is running on %s",
			want, s.ServerInfo().OSType)
	}
	return "is only supported on a Docker daemon with experimental features enabled"
}

// hide takes from a command's help what the server does not have.
func hide(cmd *cobra.Command, s server) {
	if isLocal(cmd) {
		return
	}
	rules := []string{"experimental", "ostype", "swarm", "version"}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		for _, rule := range rules {
			if want, ok := f.Annotations[rule]; ok && lacks(rule, first(want), s) {
				f.Hidden = true
			}
		}
	})
	for _, sub := range cmd.Commands() {
		for _, rule := range rules {
			if want, ok := sub.Annotations[rule]; ok && lacks(rule, want, s) {
				sub.Hidden = true
			}
		}
	}
}
