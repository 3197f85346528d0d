package object_test

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

func TestConstraints(t *testing.T) {
	n := &object.Node{Node: swarm.Node{
		ID:   "abc",
		Spec: swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{"Zone": "East"}}, Role: swarm.NodeRoleManager},
		Description: swarm.NodeDescription{
			Hostname: "mgr1",
			Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
			Engine:   swarm.EngineDescription{Labels: map[string]string{"disk": "ssd"}},
		},
		Status: swarm.NodeStatus{Addr: "10.0.0.7"},
	}}
	tests := []struct {
		expr string
		want bool
		err  string
	}{
		{expr: "node.id==ABC", want: true},
		{expr: "node.id != abc"},
		{expr: "node.hostname == MGR1", want: true},
		{expr: "node.hostname==mgr*"},
		{expr: "node.role==worker"},
		{expr: "node.role!=worker", want: true},
		{expr: "node.ip==10.0.0.0/24", want: true},
		{expr: "node.ip!=10.0.0.7"},
		{expr: "node.ip==no/address"},
		{expr: "node.platform.os==linux", want: true},
		{expr: "node.platform.arch==arm64"},
		{expr: "node.labels.Zone==east", want: true},
		{expr: "node.labels.zone==east"},
		{expr: "node.labels.rack!=1", want: true},
		{expr: "engine.labels.disk==ssd", want: true},
		{expr: "node.labels.==x"},
		{expr: "node.colour==red"},
		{expr: "node.colour!=red"},
		{expr: "node.role=worker", err: "constraint expected one operator from ==, !="},
		{expr: "1x==y", err: "key '1x' is invalid"},
		{expr: "node.id==", err: "value '' is invalid"},
		{expr: "node.id=={}", err: "value '{}' is invalid"},
	}
	for _, tt := range tests {
		cs, err := object.ParseConstraints([]string{tt.expr})
		if err != nil || tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("ParseConstraints(%q): got error %v, want %q", tt.expr, err, tt.err)
			}
			continue
		}
		if got := object.Match(cs, n); got != tt.want {
			t.Errorf("Match(%q): got %v, want %v", tt.expr, got, tt.want)
		}
	}
}
