package nodetest

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Member is the node file of a node of a [Swarm] that is told by
// `docker swarm init` and `docker swarm join` what it is.
const Member = `
hostname: {{name}}
data_dir: {{dir}}/data
swarm:
  listen: 0.0.0.0:2377
  advertise: {{addr}}
{{role}}admin:
  listen: ["unix://{{dir}}/skep.sock"]
log: {level: debug}
`

// The roles that a node file can give: the first manager's, and that of a node
// that joins with the token in the file of that name.
const (
	Founder = "  init: {}\n"
	Joiner  = "  join: {token_file: {{dir}}/token, managers: [{{managers}}]}\n"
)

// Swarm is machines on one switch: real nodes with namespaces, a host name and
// an address each. All of it ends with the test.
type Swarm struct {
	// Docker is the path of the docker command line.
	Docker string

	tb     testing.TB
	binary string
	net    *netSwitch
	mu     sync.Mutex
	nodes  []*Node
	cuts   map[way]bool
}

// NewSwarm makes a swarm of no machines.
func NewSwarm(tb testing.TB, binary, docker string) *Swarm {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Fatal("nodes need root")
	}
	net, err := newSwitch()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(net.close)
	return &Swarm{Docker: docker, tb: tb, binary: binary, net: net, cuts: map[way]bool{}}
}

// Add makes a machine with power and a node file, which is [Member] with role
// in it. The node is not started.
func (s *Swarm) Add(tb testing.TB, name, role string) *Node {
	tb.Helper()
	s.mu.Lock()
	n := &Node{Name: name, binary: s.binary, swarm: s, number: len(s.nodes) + 1}
	s.nodes = append(s.nodes, n)
	s.mu.Unlock()
	n.Addr = netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + n.number)})
	n.prepare(s.tb, strings.ReplaceAll(Member, "{{role}}", role))
	n.PowerOn(tb)
	return n
}

// Node is the node of that name.
func (s *Swarm) Node(tb testing.TB, name string) *Node {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.nodes, func(n *Node) bool { return n.Name == name })
	if i < 0 {
		tb.Fatalf("there is no node %s", name)
	}
	return s.nodes[i]
}

// Nodes are all nodes in the order of their making.
func (s *Swarm) Nodes() []*Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// managers are the addresses of the nodes that are named like managers, but for n.
func (s *Swarm) managers(n *Node) string {
	var addrs []string
	for _, m := range s.Nodes() {
		if m != n && strings.HasPrefix(m.Name, "m") {
			addrs = append(addrs, m.Addr.String()+":2377")
		}
	}
	return strings.Join(addrs, ", ")
}

// Form makes a swarm from node files alone and waits until it is complete: the
// first name founds it, the others join, as managers if their names begin with
// an m, all at once.
func (s *Swarm) Form(tb testing.TB, names ...string) {
	tb.Helper()
	first := s.Add(tb, names[0], Founder)
	first.Start(tb)
	for _, name := range names[1:] {
		n := s.Add(tb, name, Joiner)
		n.WriteToken(tb, first)
		n.Launch(tb)
	}
	for _, name := range names[1:] {
		s.Node(tb, name).AwaitReady(tb)
	}
	managers := 0
	for _, name := range names {
		if strings.HasPrefix(name, "m") {
			managers++
		}
	}
	docker := first.CLI(tb, s.Docker)
	if !Eventually(func() bool {
		out, err := docker.Try("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}")
		return err == nil && strings.Count(out, "Ready") == len(names) && strings.Count(out, "Leader")+strings.Count(out, "Reachable") == managers &&
			// A manager has no vote at first, and an even one never.
			strings.Count(first.Log(), "step=promote") >= (managers-1)/2*2
	}) {
		tb.Fatalf("the swarm is not complete:\n%s", docker.Run("node", "ls"))
	}
}

// WriteToken puts the token of n's role where its node file looks for it.
func (n *Node) WriteToken(tb testing.TB, from *Node) {
	tb.Helper()
	role := "worker"
	if strings.HasPrefix(n.Name, "m") {
		role = "manager"
	}
	token := from.CLI(tb, n.swarm.Docker).Run("swarm", "join-token", "-q", role)
	if err := os.WriteFile(n.Path("token"), []byte(token), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// PowerOn gives the node's machine power: it is as after a boot, with the
// node's files and nothing else. The node itself is not started.
func (n *Node) PowerOn(tb testing.TB) {
	tb.Helper()
	if n.machine != nil {
		return
	}
	m, err := powerOn(n.Name, n.Scope())
	if err != nil {
		tb.Fatal(err)
	}
	n.machine, n.ns = m, m.ns
	mac := net.HardwareAddr{2, 0, 0, 77, 0, byte(n.number)}
	if err := n.swarm.net.plug(n.Name, mac, m, n.prefix()); err != nil {
		tb.Fatal(err)
	}
}

func (n *Node) prefix() netip.Prefix { return netip.PrefixFrom(n.Addr, 24) }

// PowerOff takes it away: every process of the node ends at once, containers
// too, and what was in memory is lost.
func (n *Node) PowerOff(tb testing.TB) {
	tb.Helper()
	if err := n.cutPower(); err != nil {
		tb.Fatal(err)
	}
}

func (n *Node) cutPower() error {
	if n.machine == nil {
		return nil
	}
	// Nobody hears the end of a machine.
	n.swarm.net.unplug(n.Name)
	err := n.machine.powerOff()
	n.machine, n.ns = nil, -1
	if n.cmd != nil {
		<-n.ended //nolint:errcheck // it was killed, and says so
		n.cmd = nil
	}
	return err
}

// Freeze stops all of the machine's processes where they are; Thaw lets them go on.
func (n *Node) Freeze(tb testing.TB) {
	tb.Helper()
	if err := n.machine.freeze(true); err != nil {
		tb.Fatal(err)
	}
}

// Thaw ends what [Node.Freeze] began.
func (n *Node) Thaw(tb testing.TB) {
	tb.Helper()
	if err := n.machine.freeze(false); err != nil {
		tb.Fatal(err)
	}
}

// Readdress gives the machine another address, and the node file too, which is
// read when the node starts.
func (n *Node) Readdress(tb testing.TB, addr netip.Addr) {
	tb.Helper()
	n.Addr = addr
	n.WriteFile(tb, n.file)
	if n.machine != nil {
		if err := readdress(n.machine, n.prefix()); err != nil {
			tb.Fatal(err)
		}
	}
}

// Cut drops what from sends to to.
func (s *Swarm) Cut(tb testing.TB, from, to string) {
	tb.Helper()
	s.cutWays(tb, way{s.Node(tb, from).Name, s.Node(tb, to).Name})
}

// Partition cuts groups of nodes off from one another, both ways. One group
// alone is cut off from all other nodes.
func (s *Swarm) Partition(tb testing.TB, groups ...[]string) {
	tb.Helper()
	if len(groups) == 1 {
		var rest []string
		for _, n := range s.Nodes() {
			if !slices.Contains(groups[0], n.Name) {
				rest = append(rest, n.Name)
			}
		}
		groups = append(groups, rest)
	}
	var ways []way
	for i, group := range groups {
		for _, other := range groups[i+1:] {
			for _, a := range group {
				for _, b := range other {
					ways = append(ways, way{s.Node(tb, a).Name, b}, way{s.Node(tb, b).Name, a})
				}
			}
		}
	}
	s.cutWays(tb, ways...)
}

// Heal lets all nodes reach all others again.
func (s *Swarm) Heal(tb testing.TB) {
	tb.Helper()
	s.mu.Lock()
	clear(s.cuts)
	s.mu.Unlock()
	s.cutWays(tb) // none
}

func (s *Swarm) cutWays(tb testing.TB, ways ...way) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range ways {
		s.cuts[w] = true
	}
	if err := s.net.cut(s.cuts); err != nil {
		tb.Fatal(err)
	}
}
