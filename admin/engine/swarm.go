package engine

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/netip"
	"reflect"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) swarmRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /swarm", a.inspectSwarm),
		a.write(admin.Admin, "POST /swarm/init", a.initSwarm),
		a.write(admin.Admin, "POST /swarm/join", a.joinSwarm),
		a.write(admin.Admin, "POST /swarm/leave", a.leaveSwarm),
		a.write(admin.Admin, "POST /swarm/update", a.updateSwarm),
		a.write(admin.Admin, "GET /swarm/unlockkey", a.unlockKey), // audited, though it changes nothing
		a.write(admin.Admin, "POST /swarm/unlock", a.unlockSwarm),
	}
}

func (a *API) inspectSwarm(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	c := s.Cluster()
	if c == nil {
		return object.Errorf(errdefs.ErrUnavailable, "the swarm is being set up")
	}
	answer := swarm.Swarm{ClusterInfo: clusterInfo(c)}
	if admin.Caller(r.Context()).Role >= admin.Admin {
		answer.JoinTokens = c.JoinTokens
	}
	return writeJSON(w, http.StatusOK, answer)
}

// clusterInfo is the swarm as everybody may see it: without keys and tokens.
func clusterInfo(c *object.Cluster) swarm.ClusterInfo {
	info := swarm.ClusterInfo{
		ID:           c.ID,
		Meta:         c.Meta,
		Spec:         c.Spec,
		TLSInfo:      tlsInfo(c.RootCA.Cert),
		SubnetSize:   c.SubnetSize,
		DataPathPort: c.DataPathPort,

		RootRotationInProgress: c.RootCA.Rotation != nil || c.RootDue(),
	}
	info.Spec.Labels = labels(c.Spec.Labels)
	info.Spec.CAConfig.SigningCACert, info.Spec.CAConfig.SigningCAKey = "", ""
	for _, pool := range c.DefaultAddrPool {
		if p, err := netip.ParsePrefix(pool); err == nil {
			info.DefaultAddrPool = append(info.DefaultAddrPool, p)
		}
	}
	return info
}

// tlsInfo is how a root certificate is shown.
func tlsInfo(root []byte) swarm.TLSInfo {
	info := swarm.TLSInfo{TrustRoot: string(root)}
	if block, _ := pem.Decode(root); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			info.CertIssuerSubject, info.CertIssuerPublicKey = cert.RawSubject, cert.RawSubjectPublicKeyInfo
		}
	}
	return info
}

// swarmInfo is what the node knows of its swarm; only a manager knows it whole.
func (a *API) swarmInfo(ctx context.Context) swarm.Info {
	info := a.Swarm.Info(ctx)
	if !info.ControlAvailable {
		return info
	}
	s, err := a.state(ctx)
	if err != nil {
		info.Error = err.Error()
		return info
	}
	if c := s.Cluster(); c != nil {
		info.Cluster = new(clusterInfo(c))
	}
	if stale(ctx) {
		info.Warnings = append(info.Warnings, "WARNING: This manager knows of no leader. What it tells of the swarm may be old, and nothing can be changed.")
	}
	info.Nodes = s.Nodes.Len()
	info.Managers = countManagers(s)
	if info.Managers == 2 {
		info.Warnings = append(info.Warnings, "WARNING: Running Swarm in a two-manager configuration. The loss of either manager stops the swarm from being changed; three are needed to survive one.")
	}
	return info
}

func countManagers(s *store.Snapshot) int {
	n := 0
	for node := range s.Nodes.All() {
		if node.Spec.Role == swarm.NodeRoleManager {
			n++
		}
	}
	return n
}

func (a *API) initSwarm(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[swarm.InitRequest](r)
	if err != nil {
		return err
	}
	if minorOf(r) < 39 {
		req.DefaultAddrPool, req.SubnetSize = nil, 0
	}
	if minorOf(r) < 40 {
		req.DataPathPort = 0
	}
	if req.Spec.Name != "" && req.Spec.Name != "default" {
		return invalid(`swarm spec must be named "default"`)
	}
	if err = checkSpec(&req.Spec); err != nil {
		return err
	}
	if err = checkFirstCA(&req.Spec.CAConfig); err != nil {
		return err
	}
	id, err := a.Swarm.Init(r.Context(), req)
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), id)
	return writeJSON(w, http.StatusOK, id)
}

// checkSpec refuses what no swarm can be.
func checkSpec(spec *swarm.Spec) error {
	if spec.Dispatcher.HeartbeatPeriod < 0 {
		return invalid("heartbeat time period cannot be a negative duration")
	}
	return nil
}

func (a *API) joinSwarm(_ http.ResponseWriter, r *http.Request) error {
	req, err := decode[swarm.JoinRequest](r)
	if err != nil {
		return err
	}
	if len(req.RemoteAddrs) == 0 {
		return invalid("at least 1 RemoteAddr is required to join")
	}
	return a.Swarm.Join(r.Context(), req)
}

func (a *API) leaveSwarm(_ http.ResponseWriter, r *http.Request) error {
	return a.Swarm.Leave(r.Context(), flag(r, "force"))
}

func (a *API) updateSwarm(_ http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.Spec](r)
	if err != nil {
		return err
	}
	version, err := objectVersion(r, "swarm")
	if err != nil {
		return err
	}
	if err = checkSpec(&spec); err != nil {
		return err
	}
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		old := s.Cluster()
		switch {
		case old == nil:
			return object.Errorf(errdefs.ErrUnavailable, "the swarm is being set up")
		case spec.Name != old.Spec.Name:
			return invalid("modification of cluster name is not allowed")
		case version != old.Version:
			return store.ErrSequence
		}
		c := clone(old)
		if err := a.changeCA(r.Context(), c, &spec.CAConfig); err != nil {
			return err
		}
		if err := rotateTokens(c, flag(r, "rotateWorkerToken"), flag(r, "rotateManagerToken")); err != nil {
			return err
		}
		c.Spec = spec
		setUnlockKey(c, s.Index, flag(r, "rotateManagerUnlockKey"))
		if reflect.DeepEqual(old, c) {
			return nil
		}
		tx.Update(c)
		return nil
	})
}
