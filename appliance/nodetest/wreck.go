package nodetest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"skep/net/link"
)

// wrecks are what [Node.Wreck] can do to one network namespace.
var wrecks = map[string]func() error{
	"links":   deleteLinks,
	"rules":   deleteTables,
	"entries": deleteEntries,
}

// Wreck deletes, behind the node's back, the links of the networks that span
// nodes ("links"), what they know of their members ("entries"), or all rules
// for packets on the node, its networks and its containers ("rules").
func (n *Node) Wreck(kind string) error {
	wreck, ok := wrecks[kind]
	if !ok {
		return fmt.Errorf("wreck %s: it is none of links, rules and entries", kind)
	}
	patterns := []string{"overlay/netns/*"}
	if kind == "rules" {
		patterns = append(patterns, "netns/*")
		if err := n.Do(wreck); err != nil {
			return fmt.Errorf("wreck %s: %w", kind, err)
		}
	}
	for _, path := range n.glob(patterns...) {
		if err := n.Do(func() error { return within(path, wreck) }); err != nil {
			return fmt.Errorf("wreck %s in %s: %w", kind, path, err)
		}
	}
	return nil
}

// glob lists what is in the node's run directory, which only its machine sees.
func (n *Node) glob(patterns ...string) (paths []string) {
	_ = n.Do(func() error {
		for _, p := range patterns {
			found, err := filepath.Glob(n.Path("data", "run", p))
			if err != nil {
				return err
			}
			paths = append(paths, found...)
		}
		return nil
	})
	return paths
}

// deleteLinks deletes those links of a network's namespace that carry its frames.
func deleteLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if name := l.Attrs().Name; name == "vxlan0" || name == "br0" || name == "node0" || strings.HasPrefix(name, "p") {
			err = errors.Join(err, netlink.LinkDel(l))
		}
	}
	return err
}

func deleteTables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		conn.DelTable(t)
	}
	return conn.Flush()
}

func deleteEntries() error {
	return dropEntries(func(all []link.Entry) ([]link.Entry, error) { return all, nil })
}
