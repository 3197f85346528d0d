package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"skep/store/object"
)

func statusCommand(docker command.Cli) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the node, its swarm, what runs and what is wrong, on one screen",
		Args:  dockercli.NoArgs,

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := look(cmd.Context(), docker.Client())
			if err != nil {
				return err
			}
			return v.print(docker.Out())
		},
	}
}

// view is what status shows. Nodes, services and tasks are known to managers only.
type view struct {
	info     system.Info
	api      string
	nodes    []swarm.Node
	services []swarm.Service
	tasks    []swarm.Task
	// network is nil if the server does not tell.
	network *object.NetworkHealth
}

func look(ctx context.Context, c client.APIClient) (view, error) {
	info, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		return view{}, err
	}
	v := view{info: info.Info, api: c.ClientVersion()}
	if v.network, err = health(ctx, c, v.info.Swarm.LocalNodeState); err != nil {
		return view{}, err
	}
	if !v.info.Swarm.ControlAvailable {
		return v, nil
	}
	nodes, err := c.NodeList(ctx, client.NodeListOptions{})
	if err != nil {
		return view{}, err
	}
	services, err := c.ServiceList(ctx, client.ServiceListOptions{Status: true})
	if err != nil {
		return view{}, err
	}
	tasks, err := c.TaskList(ctx, client.TaskListOptions{})
	if err != nil {
		return view{}, err
	}
	v.nodes, v.services, v.tasks = nodes.Items, services.Items, tasks.Items
	slices.SortFunc(v.nodes, func(a, b swarm.Node) int {
		return cmp.Compare(a.Description.Hostname, b.Description.Hostname)
	})
	slices.SortFunc(v.services, func(a, b swarm.Service) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return v, nil
}

// health is nil if the server cannot tell: a locked node, or another's.
func health(ctx context.Context, c client.APIClient, state swarm.LocalNodeState) (*object.NetworkHealth, error) {
	if state == swarm.LocalNodeStateLocked {
		return nil, nil //nolint:nilnil // as documented
	}
	h := new(object.NetworkHealth)
	err := ask(ctx, c, "/skep/networks", h)
	if errors.Is(err, errNoRoute) {
		return nil, nil //nolint:nilnil // as documented
	}
	return h, err
}

func (v view) print(out io.Writer) error {
	w := new(strings.Builder)
	i := v.info
	fmt.Fprintf(w, "NODE\t%s\n", strings.TrimSpace(i.Name+"  "+i.Swarm.NodeID))
	fmt.Fprintf(w, "VERSION\t%s, API %s, %s, %s\n", i.ServerVersion, v.api, i.KernelVersion, i.Architecture)
	fmt.Fprintf(w, "SWARM\t%s\n", v.swarm())
	fmt.Fprintf(w, "CONTAINERS\t%d running, %d stopped; %d images\n", i.ContainersRunning, i.ContainersStopped, i.Images)
	if n := v.network; n != nil {
		fmt.Fprintf(w, "NETWORKS\t%s\n", networks(n))
	}
	if len(v.nodes) > 1 {
		fmt.Fprint(w, "\nNODE\tSTATUS\tAVAILABILITY\tROLE\n")
		for _, n := range v.nodes {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.Description.Hostname, n.Status.State, n.Spec.Availability, role(n))
		}
	}
	if len(v.services) > 0 {
		fmt.Fprint(w, "\nSERVICE\tMODE\tRUNNING\tIMAGE\tPORTS\n")
		for _, s := range v.services {
			image, _, _ := strings.Cut(image(s), "@")
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Spec.Name, mode(s), count(s), image, ports(s))
		}
	}
	if notes := v.notes(); len(notes) > 0 {
		fmt.Fprint(w, "\nNOTES\n")
		for _, n := range notes {
			fmt.Fprintf(w, "  %s\n", n)
		}
	}
	problems := v.problems()
	if len(problems) == 0 {
		problems = []string{"none"}
	}
	fmt.Fprint(w, "\nPROBLEMS\n")
	for _, p := range problems {
		fmt.Fprintf(w, "  %s\n", p)
	}
	columns := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if _, err := io.WriteString(columns, w.String()); err != nil {
		return err
	}
	return columns.Flush()
}

// swarm is the state of the swarm in one line.
func (v view) swarm() string {
	s := v.info.Swarm
	switch {
	case s.LocalNodeState != swarm.LocalNodeStateActive:
		return string(s.LocalNodeState)
	case s.Cluster == nil:
		return "active, this node is a worker"
	}
	return fmt.Sprintf("%s, %d of %d nodes %s", s.Cluster.ID, s.Managers, s.Nodes, plural(s.Managers, "is a manager", "are managers"))
}

// networks is how the node does its part for the swarm's, in one line.
func networks(h *object.NetworkHealth) string {
	encryption := "encryption impossible"
	if h.Encrypts {
		encryption = "encryption possible"
	}
	return fmt.Sprintf("balanced by %s, %s, %d %s",
		cmp.Or(h.Balancer, "nobody"), encryption, h.Repaired, plural(int(h.Repaired), "repair", "repairs"))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func role(n swarm.Node) string {
	switch {
	case n.ManagerStatus == nil:
		return string(n.Spec.Role)
	case n.ManagerStatus.Leader:
		return "leader"
	}
	return "manager, " + string(n.ManagerStatus.Reachability)
}

func image(s swarm.Service) string {
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		return c.Image
	}
	return ""
}

func mode(s swarm.Service) string {
	switch m := s.Spec.Mode; {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated job"
	case m.GlobalJob != nil:
		return "global job"
	}
	return "replicated"
}

func count(s swarm.Service) string {
	if s.ServiceStatus == nil {
		return "?"
	}
	return fmt.Sprintf("%d/%d", s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks)
}

func ports(s swarm.Service) string {
	var out []string
	for _, p := range s.Endpoint.Ports {
		out = append(out, fmt.Sprintf("%d->%d/%s", p.PublishedPort, p.TargetPort, p.Protocol))
	}
	return strings.Join(out, ", ")
}
