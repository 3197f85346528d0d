package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// alone is how many members a node looks for at once that knows of none.
const alone = 5

// member is this node while it gossips.
type member struct {
	cluster, node string
	own           netip.AddrPort
	version       uint64 // of the keys; owned by Run
	peers         atomic.Pointer[peers]
	keyring       *memberlist.Keyring
	transport     *transport
	list          *memberlist.Memberlist
	// joining is how many members are being looked for, by running.
	joining atomic.Int32
	running sync.WaitGroup
}

// peers are who is believed in; a value is never changed.
type peers struct {
	addr map[string]netip.Addr // by node
	from map[netip.Addr]bool
}

func newPeers(all []Peer) *peers {
	p := &peers{addr: map[string]netip.Addr{}, from: map[netip.Addr]bool{}}
	for _, q := range all {
		p.addr[q.NodeID], p.from[q.Addr] = q.Addr, true
	}
	return p
}

func (g *Gossip) start(ctx context.Context, s *State) (*member, error) {
	m := &member{version: s.Version, cluster: s.Cluster, node: s.NodeID, own: netip.AddrPortFrom(s.own(), g.cfg.Port)}
	m.peers.Store(newPeers(s.Peers))
	var err error
	if m.keyring, err = memberlist.NewKeyring(s.Keys, s.Keys[0]); err != nil {
		return nil, err
	}
	if m.transport, err = listen(ctx, m.own, m.peers.Load); err != nil {
		return nil, err
	}
	m.list, err = memberlist.Create(m.config(g))
	if err != nil {
		return nil, fmt.Errorf("start gossip: %w", err) // which has closed the transport
	}
	return m, nil
}

// config is tuned for a crash to be known to all in one and a half to three
// seconds: in a swarm of 20, a node is probed within 0.4 s on average, suspected
// 0.4 s later and given up 1.6 s after that, if it does not object.
func (m *member) config(g *Gossip) *memberlist.Config {
	d := &delegate{gossip: g, peers: m.peers.Load, node: m.node, port: m.own.Port(), boots: map[string]*boots{}}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = m.node, m.cluster
	c.Transport = m.transport
	c.BindAddr, c.BindPort = m.own.Addr().String(), int(m.own.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.ProtocolVersion = memberlist.ProtocolVersionMax
	c.ProbeInterval, c.ProbeTimeout = 400*time.Millisecond, 200*time.Millisecond
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 3
	c.GossipInterval = 100 * time.Millisecond
	c.TCPTimeout = 2 * time.Second
	c.DeadNodeReclaimTime = time.Millisecond // a node may come back at another address
	c.UDPBufferSize = 1400
	c.EnableCompression = false
	c.RequireNodeNames = true
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.Keyring = m.keyring
	c.Delegate, c.Events, c.Alive, c.Merge = d, d, d, d
	// What strangers make it say is nobody's morning news.
	c.LogOutput, c.Logger = nil, log.New(logWriter{g}, "", 0)
	return c
}

type logWriter struct{ g *Gossip }

func (w logWriter) Write(b []byte) (int, error) {
	w.g.cfg.Logger.Debug("memberlist", "text", strings.TrimSpace(string(b)))
	return len(b), nil
}

// suits tells whether what is wanted can be had without a new start.
func (m *member) suits(s *State) bool {
	return len(s.Keys) > 0 && s.Cluster == m.cluster && s.NodeID == m.node && s.own() == m.own.Addr()
}

// update takes over who the members are, and the keys.
func (m *member) update(s *State) error {
	m.peers.Store(newPeers(s.Peers))
	if m.version == s.Version {
		return nil
	}
	for _, k := range s.Keys {
		if err := m.keyring.AddKey(k); err != nil {
			return err
		}
	}
	if err := m.keyring.UseKey(s.Keys[0]); err != nil {
		return err
	}
	if err := m.forget(s.Keys); err != nil {
		return err
	}
	m.version = s.Version
	return nil
}

// forget removes all other keys. The keyring moves those behind a removed key in
// an array that is being read, so only the last one is ever removed.
func (m *member) forget(keep [][]byte) error {
	wanted := func(k []byte) bool {
		return slices.ContainsFunc(keep, func(o []byte) bool { return bytes.Equal(o, k) })
	}
	var back [][]byte
	for ring := m.keyring.GetKeys(); slices.ContainsFunc(ring, func(k []byte) bool { return !wanted(k) }); ring = m.keyring.GetKeys() {
		last := ring[len(ring)-1]
		if wanted(last) {
			back = append(back, last)
		}
		if err := m.keyring.RemoveKey(last); err != nil {
			return err
		}
	}
	for _, k := range slices.Backward(back) {
		if err := m.keyring.AddKey(k); err != nil {
			return err
		}
	}
	return nil
}

// alive are the members that are believed to be so.
func (m *member) alive() []string {
	var names []string
	listed := m.peers.Load().addr
	for _, n := range m.list.Members() {
		if _, ok := listed[n.Name]; ok {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

// reconnect looks for a member that is missing, so rarely that all nodes
// together look for each about once at a time.
func (m *member) reconnect() {
	here := m.alive()
	var missing []string
	for node, addr := range m.peers.Load().addr {
		if _, ok := slices.BinarySearch(here, node); !ok && addr != m.own.Addr() {
			missing = append(missing, node+"/"+netip.AddrPortFrom(addr, m.own.Port()).String())
		}
	}
	if len(missing) == 0 || rand.N(max(1, len(here))) >= len(missing) || m.joining.Load() > 0 {
		return
	}
	count := 1
	if len(here) < 2 { // it is this node that is missing
		count = alone
	}
	for _, i := range rand.Perm(len(missing))[:min(count, len(missing))] {
		m.joining.Add(1)
		m.running.Go(func() {
			defer m.joining.Add(-1)
			_, _ = m.list.Join(missing[i : i+1]) // most that are missing do not answer
		})
	}
}

// close ends it. The others find out, as they do of a crash.
func (m *member) close() error {
	err := m.list.Shutdown()
	m.running.Wait()
	return err
}
