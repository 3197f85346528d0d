package cli_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"skep/admin/cli"
	"skep/store/object"
)

// sick is a network of which one node is well, one has problems and one is silent.
func sick() object.NetworkCheck {
	end := func(name, node, addr string, r object.CheckResult, reason string) object.EndpointCheck {
		e := object.EndpointCheck{
			ID: name, Name: name, Node: node, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, State: "active",
			Frames: object.CheckYes, Names: object.CheckYes, Balancer: object.CheckNone, Result: r, Reason: reason,
		}
		if r == object.CheckOK {
			e.Echo = 123456 * time.Nanosecond
		}
		return e
	}
	lost := end("web.2", "n2", "10.0.1.4", object.CheckUnprogrammed, "missing: fdb 02:42:0a:00:01:04 dst 192.0.2.2")
	lost.Frames = object.CheckNo
	return object.NetworkCheck{ID: "net1", Name: "front", Nodes: []object.NodeCheck{
		{Node: "n1", Hostname: "m1", Asker: "c0ffee", Endpoints: []object.EndpointCheck{
			end("web.1", "n1", "10.0.1.3", object.CheckOK, ""), end("web.2", "n2", "10.0.1.4", object.CheckOK, ""),
		}},
		{Node: "n2", Hostname: "w1", Faults: []string{"br0 is missing", "bad \x1b[2J\n text"}, Endpoints: []object.EndpointCheck{
			end("web.1", "n1", "10.0.1.3", object.CheckUnasked, "no container here to ask from"), lost,
		}},
		{Node: "n3", Hostname: "w2", Unavailable: "it is down"},
	}}
}

func TestRun_NetworkCheckShowsWhatIsWrong(t *testing.T) {
	well := sick()
	well.Nodes = well.Nodes[:1]
	serveAPI(t, map[string]any{"/skep/networks/front/check": sick(), "/skep/networks/back/check": well})
	got := run(t, cli.Config{}, "network", "check", "front")
	want := `NETWORK  front  net1

NODE  OK   ASKED BY  PROBLEMS
m1    2/2  c0ffee    none
w1    0/2  -         br0 is missing
                     bad ?[2J? text
w2    ?    -         unavailable: it is down

FROM  ENDPOINT  ON  ADDRESS   FRAMES  NAMES  BALANCER  ECHO   RESULT
m1    web.1     m1  10.0.1.3  yes     yes    -         120µs  ok
m1    web.2     w1  10.0.1.4  yes     yes    -         120µs  ok
w1    web.1     m1  10.0.1.3  yes     yes    -         -      not asked: no container here to ask from
w1    web.2     w1  10.0.1.4  no      yes    -         -      not programmed: missing: fdb 02:42:0a:00:01:04 dst 192.0.2.2
`
	if diff := cmp.Diff(want, got.out); diff != "" || got.code != 1 || got.stderr != "" {
		t.Errorf("got %d, %q: %s", got.code, got.stderr, diff)
	}
	got = run(t, cli.Config{}, "network", "check", "--problems", "front")
	if strings.Contains(got.out, "120µs") || !strings.Contains(got.out, "w1    web.2") || got.code != 1 {
		t.Errorf("got %+v", got)
	}
	got = run(t, cli.Config{}, "network", "check", "--format", "json", "front")
	var c object.NetworkCheck
	if err := json.Unmarshal([]byte(got.out), &c); err != nil || got.code != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if diff := cmp.Diff(sick(), c, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got = run(t, cli.Config{}, "network", "check", "back"); got.code != 0 || !strings.Contains(got.out, "none") {
		t.Errorf("got %+v", got)
	}
}

func TestRun_NetworkCheckSaysWhyNot(t *testing.T) {
	serveAPI(t, nil)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"front"}, "the server does not know this question\n"},
		{[]string{"--format", "xml", "front"}, "invalid format \"xml\": want table or json\n"},
	} {
		if got := run(t, cli.Config{}, append([]string{"network", "check"}, tt.args...)...); got.code != 1 || got.stderr != tt.want {
			t.Errorf("%v: got %+v", tt.args, got)
		}
	}
}

func TestRun_StatusTellsOfNetworks(t *testing.T) {
	service := func(id, name string, labels map[string]string, ports int) swarm.Service {
		s := swarm.Service{ID: id, Spec: swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name, Labels: labels}}}
		for i := range ports {
			s.Endpoint.Ports = append(s.Endpoint.Ports, swarm.PortConfig{Protocol: "tcp", PublishedPort: uint32(i + 1), TargetPort: 80})
		}
		return s
	}
	serveAPI(t, map[string]any{
		"/info": system.Info{Name: "mgr1", Swarm: swarm.Info{
			NodeID: "n1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true, Managers: 1, Nodes: 1,
		}},
		"/nodes": []swarm.Node{}, "/tasks": []swarm.Task{},
		"/services": []swarm.Service{
			service("s1", "api", map[string]string{object.LabelSource: object.SourceSNAT}, 1), service("s2", "web", nil, 41), service("s3", "x", nil, 1),
		},
		"/skep/networks": object.NetworkHealth{
			Balancer: "nft", BalancerReason: "this kernel has no IPVS", Repaired: 1,
			Lacks: []string{"this kernel has no VXLAN: no networks"}, Fault: "frames: no",
			Missing:   []object.MissingNetwork{{ID: "x", Name: "back", Reason: "the network is not made yet"}},
			Conflicts: []object.PortConflict{{Protocol: "tcp", Port: 8080, Service: "s2", Reason: "address already in use"}},
		},
	})
	got := run(t, cli.Config{}, "status")
	for _, want := range []string{
		"NETWORKS    balanced by nft, encryption impossible, 1 repair\n",
		"\nNOTES\n  service api does not see its clients' addresses: snat: the label skep.ingress.source says so\n" +
			"  service web does not see its clients' addresses: snat on all but the first 40 published ports\n" +
			"  on this node, this kernel has no VXLAN: no networks\n" +
			"  on this node, nft balances and not ipvs: this kernel has no IPVS\n\n",
		"  the swarm's networks are not as they should be on this node: frames: no\n" +
			"  network back is missing on this node: the network is not made yet\n" +
			"  service web: port 8080/tcp on this node: address already in use\n",
	} {
		if !strings.Contains(got.out, want) || got.code != 0 {
			t.Errorf("got %d %s\n%s\nwant %s", got.code, got.stderr, got.out, want)
		}
	}
}
