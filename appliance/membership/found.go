package membership

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/config"
	"skep/pki"
	"skep/pki/identity"
	"skep/pki/join"
	"skep/pki/seal"
	"skep/store/object"
)

// Swarm's defaults.
const (
	defaultCertExpiry = 90 * 24 * time.Hour
	defaultDataPort   = 4789
	defaultSubnetSize = 24
	historyLimit      = 5
)

// founding is a new swarm of one manager: what its first leader writes into
// the store.
type founding struct {
	Cluster *object.Cluster
	Node    *object.Node
	// Ingress is the network of the routing mesh.
	Ingress *object.Network
}

// found makes the node the first of a new swarm. From its last write on, the
// node is a member, whatever happens to the process.
func (m *Membership) found(req swarm.InitRequest) error {
	addr, err := m.addresses(askedBy(req))
	if err != nil {
		return err
	}
	id, err := newSwarm(req, m.cfg.Describe(swarm.TLSInfo{}), addr, time.Now())
	if err != nil {
		return err
	}
	// What an earlier swarm left, or a founding that got no further than this.
	if err := m.wipe(); err != nil {
		return err
	}
	id.ListenAs, id.AdvertiseAs, id.DataPathAs = req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr
	return m.become(id)
}

// askedBy are the addresses that a request to found a swarm is about.
func askedBy(req swarm.InitRequest) asked {
	return asked{req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr}
}

// become makes id the node's identity.
func (m *Membership) become(id identity.State) error {
	return m.cfg.Keys.Update(func(s *identity.State) error {
		*s = id
		return nil
	})
}

// newSwarm makes a new swarm: its authority, its first node's identity, and
// what is to be written into its store.
func newSwarm(req swarm.InitRequest, d swarm.NodeDescription, at addresses, now time.Time) (identity.State, error) {
	cluster, err := newCluster(req, now)
	if err != nil {
		return identity.State{}, err
	}
	id := identity.State{ClusterID: cluster.ID, NodeID: object.NewID(), Advertise: at.advertise.String()}
	id.RaftID = object.NewID()
	if err = issueFirst(&id, cluster, now); err != nil {
		return identity.State{}, err
	}
	node := &object.Node{CertRole: swarm.NodeRoleManager, RaftID: id.RaftID}
	node.ID = id.NodeID
	node.Spec = swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: req.Availability}
	node.Spec.Labels = map[string]string{}
	if node.Spec.Availability == "" {
		node.Spec.Availability = swarm.NodeAvailabilityActive
	}
	node.Description, node.DataPath = d, at.dataPath.String()
	node.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown, Addr: at.advertise.Addr().String()}
	node.ManagerStatus = &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: at.advertise.String()}
	if id.Founding, err = object.Encode(founding{cluster, node, ingressNetwork()}); err != nil {
		return identity.State{}, fmt.Errorf("encode new swarm: %w", err)
	}
	return id, nil
}

func newCluster(req swarm.InitRequest, now time.Time) (*object.Cluster, error) {
	root, err := pki.NewRoot(now)
	if err != nil {
		return nil, err
	}
	key, err := root.KeyPEM()
	if err != nil {
		return nil, err
	}
	c := &object.Cluster{
		ID:           object.NewID(),
		Spec:         clusterSpec(req.Spec),
		SubnetSize:   req.SubnetSize,
		DataPathPort: req.DataPathPort,
		RootCA:       object.RootCA{Cert: root.PEM(), Key: key},
	}
	if req.AutoLockManagers {
		c.Spec.EncryptionConfig.AutoLockManagers = true
	}
	if c.Spec.EncryptionConfig.AutoLockManagers {
		c.UnlockKey, c.KEKVersion = seal.NewSecret(), 1
	}
	c.JoinTokens.Worker, c.JoinTokens.Manager = join.Pair(root.Cert.Raw)
	if err = pki.CheckExpiry(c.Spec.CAConfig.NodeCertExpiry); err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = defaultSubnetSize
	}
	if c.SubnetSize > 29 {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "subnet size is out of range: %d", c.SubnetSize)
	}
	if c.DataPathPort == 0 {
		c.DataPathPort = defaultDataPort
	}
	if c.DataPathPort < 1024 || c.DataPathPort > 49151 {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "Datapath port number is not in valid range (1024-49151) : %d", c.DataPathPort)
	}
	if c.DefaultAddrPool, err = addressPools(req.DefaultAddrPool, c.SubnetSize); err != nil {
		return nil, err
	}
	return c, nil
}

// addressPools are what networks get their subnets of that many bits from.
func addressPools(pools []netip.Prefix, bits uint32) (out []string, err error) {
	for i, pool := range pools {
		switch {
		case !pool.IsValid() || !pool.Addr().Is4():
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "invalid CIDR: %q. Address pools are of IPv4", pool)
		case uint32(pool.Bits()) > bits:
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "invalid CIDR: %q. Subnet size is too small for pool: %d", pool, bits)
		}
		for _, other := range pools[:i] {
			if other.Overlaps(pool) {
				return nil, object.Errorf(errdefs.ErrInvalidArgument, "invalid CIDR: %q. It overlaps %q", pool, other)
			}
		}
		out = append(out, pool.Masked().String())
	}
	return out, nil
}

// clusterSpec fills Swarm's defaults in.
func clusterSpec(s swarm.Spec) swarm.Spec {
	s.Name = "default"
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Orchestration.TaskHistoryRetentionLimit == nil {
		s.Orchestration.TaskHistoryRetentionLimit = new(int64(historyLimit))
	}
	s.Raft.SnapshotInterval = cmp.Or(s.Raft.SnapshotInterval, 10000)
	s.Raft.LogEntriesForSlowFollowers = cmp.Or(s.Raft.LogEntriesForSlowFollowers, 500)
	s.Raft.ElectionTick, s.Raft.HeartbeatTick = cmp.Or(s.Raft.ElectionTick, 10), cmp.Or(s.Raft.HeartbeatTick, 1)
	if s.Raft.KeepOldSnapshots == nil {
		s.Raft.KeepOldSnapshots = new(uint64)
	}
	if s.Dispatcher.HeartbeatPeriod == 0 {
		s.Dispatcher.HeartbeatPeriod = 5 * time.Second
	}
	if s.CAConfig.NodeCertExpiry == 0 {
		s.CAConfig.NodeCertExpiry = defaultCertExpiry
	}
	return s
}

// ingressNetwork is the network of the routing mesh that every swarm begins
// with. Its subnet is for the allocator to choose.
func ingressNetwork() *object.Network {
	n := &object.Network{}
	n.ID = object.NewID()
	n.Spec.Name, n.Spec.Labels = "ingress", map[string]string{}
	n.Spec.DriverConfiguration = &swarm.Driver{}
	n.Spec.IPAMOptions = &swarm.IPAMOptions{}
	n.Spec.Ingress, n.Spec.Scope = true, "swarm"
	return n
}

// issueFirst gives the first manager its key and certificate.
func issueFirst(id *identity.State, c *object.Cluster, now time.Time) error {
	root, err := pki.ParseRoot(c.RootCA.Cert, c.RootCA.Key)
	if err != nil {
		return err
	}
	cert, key, err := root.Enroll(pki.Node{ID: id.NodeID, Cluster: id.ClusterID, Role: pki.Manager}, now, c.Spec.CAConfig.NodeCertExpiry)
	if err != nil {
		return err
	}
	id.Key, id.Certificate, id.Roots = key, cert, root.PEM()
	return nil
}

// initRequest is the node file's init section as a request.
func initRequest(c config.Swarm) swarm.InitRequest {
	req := swarm.InitRequest{
		ListenAddr:    c.Listen,
		AdvertiseAddr: c.Advertise,
		DataPathAddr:  c.DataPath.Address,
		DataPathPort:  uint32(c.DataPath.Port),
		Availability:  swarm.NodeAvailability(c.Availability),
	}
	req.AutoLockManagers = c.Init.Autolock
	req.Spec.CAConfig.NodeCertExpiry = c.Init.CertExpiry
	for _, p := range c.Init.AddressPool {
		req.DefaultAddrPool = append(req.DefaultAddrPool, p.Base)
		req.SubnetSize = uint32(p.Size)
	}
	return req
}
