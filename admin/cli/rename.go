package cli

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// rename makes the help of all commands name skep where it names docker.
func rename(cmd *cobra.Command) {
	for _, text := range []*string{&cmd.Use, &cmd.Short, &cmd.Long, &cmd.Example} {
		*text = renamed(*text)
	}
	if aliases, ok := cmd.Annotations["aliases"]; ok {
		cmd.Annotations["aliases"] = renamed(aliases)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Usage = renamed(f.Usage) })
	for _, sub := range cmd.Commands() {
		rename(sub)
	}
}

// renamed puts skep in the place of docker the program and Docker the server,
// and leaves names of other things alone: addresses, files, Docker Hub.
func renamed(text string) string {
	const hub, hidden = "Docker Hub", "\x00"
	text = strings.ReplaceAll(text+" ", hub, hidden)
	text = strings.NewReplacer("docker ", "skep ", "Docker ", "Skep ").Replace(text)
	return strings.ReplaceAll(text[:len(text)-1], hidden, hub)
}

// tells reports whether a command tells the user which command to type next.
func tells(cmd *cobra.Command) bool {
	return slices.Contains([]string{
		"skep swarm init", "skep swarm join-token", "skep swarm unlock-key", "skep swarm update",
	}, cmd.CommandPath())
}

// renaming writes what those commands say, with our name in it. Each of their
// sentences is one write.
type renaming struct{ io.Writer }

func (w renaming) Write(p []byte) (int, error) {
	if _, err := w.Writer.Write(bytes.ReplaceAll(p, []byte("docker swarm "), []byte("skep swarm "))); err != nil {
		return 0, err
	}
	return len(p), nil
}
