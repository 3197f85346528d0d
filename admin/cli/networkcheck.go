package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"

	"skep/store/object"
)

func networkCheckCommand(docker command.Cli) *cobra.Command {
	var format string
	var problems bool
	cmd := &cobra.Command{
		Use:   "check [OPTIONS] NETWORK",
		Short: "Show what the nodes on a network of the swarm have of it, and who answers",
		Long: "Show what the nodes on a network of the swarm have of it, and who answers.\n\n" +
			"Every node is asked what its kernel and its name servers know of each endpoint, and sends an echo request " +
			"to each. Nothing is changed or repaired. Ends with code 1 if anything is wrong.",
		Args: dockercli.ExactArgs(1),

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("invalid format %q: want table or json", format)
			}
			var c object.NetworkCheck
			if err := ask(cmd.Context(), docker.Client(), "/skep/networks/"+url.PathEscape(args[0])+"/check", &c); err != nil {
				return err
			}
			well := true
			for _, n := range c.Nodes {
				well = well && n.Well()
			}
			if err := printCheck(docker.Out(), c, format, problems); err != nil {
				return err
			}
			if !well {
				return dockercli.StatusError{StatusCode: 1}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", `Format output ("table" or "json")`)
	cmd.Flags().BoolVar(&problems, "problems", false, "Show only what is wrong (table)")
	return cmd
}

func printCheck(out io.Writer, c object.NetworkCheck, format string, problems bool) error {
	if format == "json" {
		return json.NewEncoder(out).Encode(c)
	}
	w := new(strings.Builder)
	fmt.Fprintf(w, "NETWORK\t%s\n", printable(strings.TrimSpace(c.Name+"  "+c.ID)))
	names := map[string]string{}
	for _, n := range c.Nodes {
		names[n.Node] = hostname(n)
	}
	printNodes(w, c)
	printEndpoints(w, c, names, problems)
	columns := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if _, err := io.WriteString(columns, w.String()); err != nil {
		return err
	}
	return columns.Flush()
}

func hostname(n object.NodeCheck) string {
	if n.Hostname == "" {
		return n.Node
	}
	return printable(n.Hostname)
}

// printNodes shows one line for each node, and what is wrong with it.
func printNodes(w io.Writer, c object.NetworkCheck) {
	if len(c.Nodes) == 0 {
		fmt.Fprint(w, "\nno node has anything on this network\n")
		return
	}
	fmt.Fprint(w, "\nNODE\tOK\tASKED BY\tPROBLEMS\n")
	for _, n := range c.Nodes {
		name, faults, well := hostname(n), n.Faults, 0
		for _, e := range n.Endpoints {
			if e.Result == object.CheckOK {
				well++
			}
		}
		count := fmt.Sprintf("%d/%d", well, len(n.Endpoints))
		if n.Unavailable != "" {
			count, faults = "?", []string{"unavailable: " + n.Unavailable}
		}
		asker := n.Asker
		if asker == "" {
			asker = "-"
		}
		if len(faults) == 0 {
			faults = []string{"none"}
		}
		for _, f := range faults {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, count, printable(asker), printable(f))
			name, count, asker = "", "", ""
		}
	}
}

func printEndpoints(w io.Writer, c object.NetworkCheck, names map[string]string, problems bool) {
	head := "\nFROM\tENDPOINT\tON\tADDRESS\tFRAMES\tNAMES\tBALANCER\tECHO\tRESULT\n"
	for _, n := range c.Nodes {
		for _, e := range n.Endpoints {
			if problems && (e.Result == object.CheckOK || e.Result == object.CheckUnasked) {
				continue
			}
			on, ok := names[e.Node]
			if !ok {
				on = e.Node
			}
			result := string(e.Result)
			if e.Reason != "" {
				result += ": " + e.Reason
			}
			fmt.Fprint(w, head)
			head = ""
			cells := []string{
				hostname(n), e.Name, on, addresses(e.Addresses), string(e.Frames), string(e.Names), string(e.Balancer), echoed(e.Echo), result,
			}
			for i := range cells {
				cells[i] = printable(cells[i])
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
	}
}

func addresses(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}

func echoed(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(10 * time.Microsecond).String()
}
