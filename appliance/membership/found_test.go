package membership

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
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
