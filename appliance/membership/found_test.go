package membership

import (
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

func TestClusterSpec_FillsInWhatIsNotAskedFor(t *testing.T) {
	tests := []struct {
		name string
		in   swarm.RaftConfig
		want swarm.RaftConfig
	}{
		{"nothing", swarm.RaftConfig{}, swarm.RaftConfig{SnapshotInterval: 10000, KeepOldSnapshots: new(uint64(0)), LogEntriesForSlowFollowers: 500, ElectionTick: 10, HeartbeatTick: 1}},
		{"snapshots", swarm.RaftConfig{SnapshotInterval: 7, KeepOldSnapshots: new(uint64(2))}, swarm.RaftConfig{SnapshotInterval: 7, KeepOldSnapshots: new(uint64(2)), LogEntriesForSlowFollowers: 500, ElectionTick: 10, HeartbeatTick: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := clusterSpec(swarm.Spec{Raft: tt.in})
			if diff := cmp.Diff(tt.want, got.Raft); diff != "" {
				t.Errorf("raft (-want +got):\n%s", diff)
			}
			if got.Name != "default" || got.Dispatcher.HeartbeatPeriod != 5*time.Second || *got.Orchestration.TaskHistoryRetentionLimit != 5 || got.CAConfig.NodeCertExpiry != 90*24*time.Hour {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestNewSwarm_HasANetworkForItsMesh(t *testing.T) {
	req := swarm.InitRequest{DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("10.30.7.7/20")}, SubnetSize: 26}
	id, err := newSwarm(req, swarm.NodeDescription{}, addresses{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var f founding
	if err := object.Decode(id.Founding, &f); err != nil {
		t.Fatal(err)
	}
	n := f.Ingress
	if n == nil || n.ID == "" || n.Spec.Name != "ingress" || !n.Spec.Ingress || n.Spec.Scope != "swarm" || n.VNI != 0 {
		t.Errorf("ingress network: %+v", n)
	}
	if diff := cmp.Diff([]string{"10.20.0.0/16", "10.30.0.0/20"}, f.Cluster.DefaultAddrPool); diff != "" || f.Cluster.SubnetSize != 26 {
		t.Errorf("subnets of /%d, pools (-want +got):\n%s", f.Cluster.SubnetSize, diff)
	}
}

func TestNewCluster_RefusesPoolsThatCannotBe(t *testing.T) {
	for pool, want := range map[string]string{
		"10.20.0.0/25": `invalid CIDR: "10.20.0.0/25". Subnet size is too small for pool: 24`,
		"fd00::/16":    `invalid CIDR: "fd00::/16". Address pools are of IPv4`,
		"10.9.0.0/16":  `invalid CIDR: "10.9.0.0/16". It overlaps "10.0.0.0/8"`,
	} {
		req := swarm.InitRequest{DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix(pool)}}
		if pool == "10.20.0.0/25" {
			req.DefaultAddrPool = req.DefaultAddrPool[1:]
		}
		if _, err := newCluster(req, time.Now()); !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("pool %s: got %v, want %s", pool, err, want)
		}
	}
}
