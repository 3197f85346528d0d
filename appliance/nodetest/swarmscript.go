package nodetest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// swarmCommands are the words for several nodes. Names that begin with m are
// managers', all others workers'.
//
//	swarm NAME…            a swarm of these, made by node files alone and complete
//	machine NAME…          nodes that are started and wait for swarm init or join
//	client NAME…           machines at the switch that are no nodes
//	joiner NAME FROM       a machine whose node file joins FROM's swarm; not started
//	on NAME COMMAND…       any word, at that node
//	each NAME,… COMMAND…   the same at each of these
//	boot NAME…             power for the machine, and its node started
//	poweroff NAME…         the machine's power is cut: node and containers end at once
//	freeze|thaw NAME…      all of the machine's processes stop, go on
//	readdress NAME ADDR    another address, for the machine and in its node file
//	partition A B / C D    cuts A and B from C and D; without / from all others
//	cut FROM TO            one way only
//	heal                   ends partitions and cuts
//	leader VAR FROM [NOT]  waits for a leader that FROM sees, other than NOT, and sets
//	                       VAR to its name and OTHER to that of another manager
//	copydata FROM TO       TO gets a copy of FROM's data directory, while neither runs
//	takes MAX COMMAND…     it takes no longer; prints how long
//	tap NAME…              what passes the machines' cables is kept
//	tapped NAME TEXT       some of it has the text; with !, none has, and some is encrypted
//	wreck KIND…            deletes links, rules or entries behind the node's back
//	forget NETWORK ADDR    the node's kernel forgets what leads to an address of a network
//	file NAME PATH         copies a file of a node to the script's directory
func swarmCommands(words map[string]command) map[string]command {
	each := func(f func(n *Node, t tb)) command {
		return func(ts *testscript.TestScript, _ bool, args []string) {
			for _, name := range args {
				t := failing(ts)
				f(onStage(ts).swarm.Node(t, name), t)
			}
		}
	}
	cmds := map[string]command{
		"swarm": func(ts *testscript.TestScript, _ bool, args []string) {
			onStage(ts).swarm.Form(failing(ts), args...)
		},
		"machine": func(ts *testscript.TestScript, _ bool, args []string) {
			for _, name := range args {
				onStage(ts).swarm.Add(failing(ts), name, "").Start(failing(ts))
			}
		},
		"client": func(ts *testscript.TestScript, _ bool, args []string) {
			for _, name := range args {
				onStage(ts).swarm.Add(failing(ts), name, "")
			}
		},
		"joiner": func(ts *testscript.TestScript, _ bool, args []string) {
			t, s := failing(ts), onStage(ts).swarm
			s.Add(t, args[0], Joiner).WriteToken(t, s.Node(t, args[1]))
		},
		"boot":     each(func(n *Node, t tb) { n.Start(t) }),
		"poweroff": each(func(n *Node, t tb) { n.PowerOff(t) }),
		"freeze":   each(func(n *Node, t tb) { n.Freeze(t) }),
		"thaw":     each(func(n *Node, t tb) { n.Thaw(t) }),
		"readdress": func(ts *testscript.TestScript, _ bool, args []string) {
			addr, err := netip.ParseAddr(args[1])
			ts.Check(err)
			onStage(ts).swarm.Node(failing(ts), args[0]).Readdress(failing(ts), addr)
		},
		"partition": func(ts *testscript.TestScript, _ bool, args []string) {
			groups := [][]string{nil}
			for _, a := range args {
				if a == "/" {
					groups = append(groups, nil)
					continue
				}
				groups[len(groups)-1] = append(groups[len(groups)-1], a)
			}
			onStage(ts).swarm.Partition(failing(ts), groups...)
		},
		"cut": func(ts *testscript.TestScript, _ bool, args []string) {
			onStage(ts).swarm.Cut(failing(ts), args[0], args[1])
		},
		"heal": func(ts *testscript.TestScript, _ bool, _ []string) {
			onStage(ts).swarm.Heal(failing(ts))
		},
		"leader": cmdLeader,
		"tap":    cmdTap,
		"tapped": cmdTapped,
		"copydata": func(ts *testscript.TestScript, _ bool, args []string) {
			s, t := onStage(ts).swarm, failing(ts)
			from, to := s.Node(t, args[0]), s.Node(t, args[1])
			ts.Check(os.RemoveAll(to.Path("data", "keystore")))
			out, err := exec.Command("cp", "-a", from.Path("data")+"/.", to.Path("data")).CombinedOutput()
			if err != nil {
				ts.Fatalf("%v %s", err, out)
			}
		},
		"forget": func(ts *testscript.TestScript, _ bool, args []string) {
			addr, err := netip.ParseAddr(args[1])
			ts.Check(err)
			ts.Check(node(ts).Forget(args[0], addr))
		},
		"wreck": func(ts *testscript.TestScript, _ bool, args []string) {
			for _, kind := range args {
				ts.Check(node(ts).Wreck(kind))
			}
		},
		"file": func(ts *testscript.TestScript, _ bool, args []string) {
			data, err := os.ReadFile(node(ts).Path(args[0]))
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
		},
	}
	word := func(ts *testscript.TestScript, name string) command {
		for _, known := range []map[string]command{words, cmds} {
			if f, ok := known[name]; ok {
				return f
			}
		}
		ts.Fatalf("unknown command %s", name)
		return nil
	}
	cmds["on"] = func(ts *testscript.TestScript, neg bool, args []string) {
		defer on(ts, args[0])()
		word(ts, args[1])(ts, neg, args[2:])
	}
	cmds["each"] = func(ts *testscript.TestScript, neg bool, args []string) {
		for name := range strings.SplitSeq(args[0], ",") {
			cmds["on"](ts, neg, append([]string{name}, args[1:]...))
		}
	}
	cmds["takes"] = func(ts *testscript.TestScript, neg bool, args []string) {
		limit, err := time.ParseDuration(args[0])
		ts.Check(err)
		began := time.Now()
		word(ts, args[1])(ts, neg, args[2:])
		took := time.Since(began)
		fmt.Fprintf(ts.Stdout(), "took %v\n", took.Round(time.Millisecond))
		if took > limit {
			ts.Fatalf("%s took %v", strings.Join(args[1:], " "), took)
		}
	}
	return cmds
}

// on makes a node the one that commands are about, until back is called.
func on(ts *testscript.TestScript, name string) (back func()) {
	s := onStage(ts)
	before := s.node
	s.node = s.swarm.Node(failing(ts), name)
	return func() { s.node = before }
}

// cmdLeader waits until there is one.
func cmdLeader(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: leader VAR FROM [NOT]")
	}
	defer on(ts, args[1])()
	line := regexp.MustCompile(`(?m)^(\S+) (Leader|Reachable)$`)
	ok := Eventually(func() bool {
		out, _, err := output(ts, []string{"docker", "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"})
		if err != nil {
			return false
		}
		var leader, other string
		for _, m := range line.FindAllStringSubmatch(out, -1) {
			if m[2] == "Leader" {
				leader = m[1]
			} else {
				other = m[1]
			}
		}
		ts.Setenv(args[0], leader)
		ts.Setenv("OTHER", other)
		return leader != "" && (len(args) == 2 || leader != args[2])
	})
	if !ok {
		ts.Fatalf("there is no leader")
	}
	fmt.Fprintln(ts.Stdout(), ts.Getenv(args[0]))
}
