package gossip

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"

	"github.com/hashicorp/memberlist"
)

const (
	bootSize    = 16
	versionSize = 64
)

// delegate filters what other nodes say and passes on what is believed.
type delegate struct {
	gossip *Gossip
	peers  func() *peers
	node   string
	port   uint16

	mu    sync.Mutex
	boots map[string]*boots // guarded by mu; by node, of those that are listed
}

// boots are the last two runs of a node.
type boots struct {
	now, before []byte
	told        bool
}

// listed is an error if a node is not where it is listed.
func (d *delegate) listed(n *memberlist.Node) error {
	addr, ok := d.peers().addr[n.Name]
	if !ok {
		return fmt.Errorf("node %q is no member", n.Name)
	}
	if said, _ := netip.AddrFromSlice(n.Addr); said.Unmap() != addr || n.Port != d.port {
		return fmt.Errorf("node %q is not at %s", n.Name, n.Address())
	}
	return nil
}

// NotifyAlive has what is said of others than members forgotten.
func (d *delegate) NotifyAlive(n *memberlist.Node) error { return d.listed(n) }

// NotifyMerge refuses a node that comes with members of its own making. Of those
// that were members NotifyAlive takes care.
func (d *delegate) NotifyMerge(all []*memberlist.Node) error {
	for _, n := range all {
		if n.Name == d.node && d.listed(n) != nil {
			return fmt.Errorf("this node is not at %s", n.Address())
		}
	}
	return nil
}

// NotifyJoin, NotifyLeave and NotifyUpdate take what all agree on.
func (d *delegate) NotifyJoin(n *memberlist.Node) {
	d.seen(n)
	d.believe(n, true)
}

// NotifyLeave is called for a node that is dead, too.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.believe(n, false) }

// NotifyUpdate is called when a node has begun anew before anybody missed it.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.seen(n) }

func (d *delegate) believe(n *memberlist.Node, alive bool) {
	if n.Name != d.node && d.listed(n) == nil {
		d.gossip.cfg.Logger.Debug("heard of member", "node", n.Name, "alive", alive)
		d.gossip.believe(n.Name, alive)
	}
}

// seen notes which run of a node is alive. One that was over and is back is
// another machine with the same identity: a copy.
func (d *delegate) seen(n *memberlist.Node) {
	if len(n.Meta) < bootSize || d.listed(n) != nil {
		return
	}
	boot := bytes.Clone(n.Meta[:bootSize])
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.boots[n.Name]
	if b == nil {
		b = &boots{}
		d.boots[n.Name] = b
	}
	if bytes.Equal(b.now, boot) {
		return
	}
	if bytes.Equal(b.before, boot) && !b.told {
		b.told = true
		d.gossip.cfg.Logger.Error("two nodes have the same identity: one is a copy of the other's data directory", "node", n.Name, "addr", n.Address())
	}
	b.now, b.before = boot, b.now
}

// NodeMeta is the run of this node and its version.
func (d *delegate) NodeMeta(limit int) []byte {
	meta := append(d.gossip.boot[:bootSize:bootSize], d.gossip.cfg.Version[:min(len(d.gossip.cfg.Version), versionSize)]...)
	return meta[:min(len(meta), limit)]
}

// NotifyMsg and the rest: no data is gossiped, and what comes is ignored.
func (d *delegate) NotifyMsg([]byte) {}

// GetBroadcasts has nothing to send.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is empty.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState takes nothing over.
func (d *delegate) MergeRemoteState([]byte, bool) {}
