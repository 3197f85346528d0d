package nodetest

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// File is a node file that makes a one-manager swarm.
const File = `
hostname: n1
data_dir: {{dir}}/data
swarm:
  listen: 127.0.0.1:2377
  advertise: 127.0.0.1
  init: {}
admin:
  listen: ["unix://{{dir}}/skep.sock"]
log: {level: debug}
`

// Leftovers lists what containers left on the machine: processes, mounts, networks,
// network namespaces, links, rules, cgroups and directories. It is empty when
// the node runs no container and cleaned up after all it ever ran.
func (n *Node) Leftovers() []string {
	var left []string
	for _, pid := range n.Processes() {
		if n.cmd == nil || pid != n.PID() {
			left = append(left, "process "+procName(pid))
		}
	}
	for _, m := range n.Mounts() {
		if m != n.Path("data", "run") {
			left = append(left, "mount "+m)
		}
	}
	if err := n.Do(func() error {
		left = append(left, n.directories()...)
		more, err := n.netLeftovers()
		left = append(left, more...)
		return err
	}); err != nil {
		left = append(left, err.Error())
	}
	return append(left, n.cgroups()...)
}

// directories lists what is in those that are empty without containers. The
// thread is in the machine, which alone sees some of them.
func (n *Node) directories() (left []string) {
	for _, dir := range []string{
		"containers", "run/containers", "run/netns", "run/secrets", "run/libcontainer",
		"run/dns", "run/overlay/attached", "run/overlay/networks", "run/overlay/netns",
	} {
		entries, _ := os.ReadDir(n.Path("data", dir))
		for _, e := range entries {
			left = append(left, "directory "+dir+"/"+e.Name())
		}
	}
	return left
}

// Traces lists what is left of the node itself: it is empty after a reset.
func (n *Node) Traces() []string {
	left := n.Leftovers()
	if isDir(n.Path("data")) {
		left = append(left, "data directory")
	}
	for _, pattern := range []string{"/sys/fs/cgroup/skep-", "/sys/fs/cgroup/*/skep-", "/sys/fs/cgroup/*/skeptest-*/skep-"} {
		dirs, _ := filepath.Glob(pattern + n.Scope())
		left = append(left, dirs...)
	}
	if err := n.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().Name != "lo" && !n.ofMachine(l) {
				left = append(left, "link "+l.Attrs().Name)
			}
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, t := range tables {
			left = append(left, "nft table "+t.Name)
		}
		return err
	}); err != nil {
		left = append(left, err.Error())
	}
	return left
}

func (n *Node) ofMachine(l netlink.Link) bool {
	return n.machine != nil && l.Attrs().Name == uplink
}

func procName(pid int) string {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return strconv.Itoa(pid) + " " + strings.ReplaceAll(string(text), "\x00", " ")
}

// scoped are the names of tables that each node of a machine has its own of.
var scoped = regexp.MustCompile(`^skep-(.+-)?[0-9a-f]{6}$`)

// netLeftovers lists container links, tables and per-port elements of the node's
// own table; that and the bridge belong to the node, the uplink to its machine.
func (n *Node) netLeftovers() ([]string, error) {
	var left []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Type() == "veth" && !n.ofMachine(l) {
			left = append(left, "link "+l.Attrs().Name)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if scoped.MatchString(t.Name) && !strings.HasSuffix(t.Name, n.Scope()) {
			continue // of a node beside this one
		}
		if t.Name != "skep-"+n.Scope() {
			left = append(left, "nft table "+t.Name)
		}
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			elements, err := conn.GetSetElements(s)
			if err == nil && len(elements) > 0 && !s.Constant {
				left = append(left, "elements of nft set "+t.Name+"/"+s.Name)
			}
		}
	}
	return left, nil
}

// Scope is what tells the node's names in the kernel from another's.
func (n *Node) Scope() string {
	sum := sha256.Sum256([]byte(n.Path("data")))
	return hex.EncodeToString(sum[:3])
}

// cgroups lists what is below the node's cgroup in any hierarchy.
func (n *Node) cgroups() []string {
	var left []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/skep-"+n.Scope()+"/") {
			left = append(left, "cgroup "+path)
			return fs.SkipDir
		}
		return nil
	})
	return left
}
