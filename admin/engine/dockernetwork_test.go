package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const stackFile = `
version: "3.8"
services:
  one:
    image: nginx
    networks:
      front: {aliases: [www]}
      back:
  two:
    image: nginx
    deploy: {endpoint_mode: dnsrr}
    networks: [back]
networks:
  front: {}
  back:
    driver: overlay
    attachable: true
    driver_opts: {encrypted: ""}
    ipam: {config: [{subnet: 10.77.0.0/24}]}
`

// TestDocker_DrivesNetworks runs the commands about networks, with all of their
// flags, against the routes and a real allocator.
func TestDocker_DrivesNetworks(t *testing.T) {
	m := newManager(t)
	m.images.digests["nginx:latest"] = digest.FromString("nginx")
	stack := filepath.Join(t.TempDir(), "stack.yml")
	if err := os.WriteFile(stack, []byte(stackFile), 0o600); err != nil {
		t.Fatal(err)
	}
	m.initialise(t)
	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	defer func() { cancel(); loops.Wait() }()
	m.live(ctx, &loops)
	n := &node{socket: m.socket}
	const (
		full = "network create -d overlay --attachable --internal --ipv6 --scope swarm --label tier=db --label a=b " +
			"--subnet 10.9.0.0/24 --ip-range 10.9.0.128/25 --gateway 10.9.0.254 --aux-address router=10.9.0.253 --subnet fd00:9::/64 " +
			"--ipam-driver default --ipam-opt x=y --opt encrypted --opt com.docker.network.driver.mtu=1400 " +
			"--opt com.docker.network.driver.overlay.vxlanid_list=5000 --opt com.example.unknown=kept full"
		ipam = `{{range~.IPAM.Config}}{{.Subnet}},{{.IPRange}},{{.Gateway}},{{.AuxAddress}};{{end}}`
	)
	for _, tt := range []struct {
		args           string // with ~ for spaces inside of one
		stdout, stderr string // parts of what is printed
		code           int
	}{
		{args: "network ls --format {{.Name}},{{.Driver}},{{.Scope}}", stdout: "ingress,overlay,swarm\n"},
		{args: "network inspect -f {{.Ingress}},{{.Attachable}} ingress", stdout: "true,false\n"},
		{args: full},
		{args: "network create -d overlay plain"},
		{args: "network create -d overlay plain", stderr: "network with name plain already exists", code: 1},
		{args: "network create -d overlay bridge", stderr: "bridge is a pre-defined network and cannot be created", code: 1},
		{args: "network create -d overlay mine", stderr: "network with name mine already exists", code: 1},
		{args: "network create -d overlay -bad", stderr: "unknown shorthand", code: 125},
		{args: "network create -d overlay a.b", stderr: "name must be valid as a DNS name component", code: 1},
		{args: "network create -d overlay --ingress second", stderr: "is already present", code: 1},
		{args: "network create -d overlay --subnet 10.9.0.0/16 x", stderr: "Pool overlaps with other one on this address space: 10.9.0.0/24 is in use by network full", code: 1},
		{args: "network create -d overlay --subnet 10.8.0.1/24 x", stderr: "invalid subnet 10.8.0.1/24: it should be 10.8.0.0/24", code: 1},
		{args: "network create -d overlay --subnet 10.8.0.0/24 --gateway 10.8.0.0 x", stderr: "subnet 10.8.0.0/24 does not contain gateway 10.8.0.0", code: 1},
		{args: "network create -d overlay --opt com.docker.network.driver.mtu=big x", stderr: `invalid MTU "big"`, code: 1},
		{args: "network create -d overlay --opt com.docker.network.driver.overlay.vxlanid_list=5000 x", stderr: "VXLAN ID 5000 is in use by network full", code: 1},
		{args: "network create -d overlay --ipam-driver odd x", stderr: `plugin "odd" not found`, code: 1},
		{args: "network create -d nodrv x", stderr: `plugin "nodrv" not found`, code: 1},
		{args: "network ls -q --no-trunc --filter scope=swarm --filter label=tier=db --filter driver=overlay --filter name=ful --filter type=custom"},
		{args: "network ls --filter dangling=true --filter scope=swarm --format {{.Name}}", stdout: "full\nplain\n"},
		{args: "network inspect -f {{.Driver}},{{.Scope}},{{.Internal}},{{.Attachable}},{{.EnableIPv6}},{{.Labels.tier}},{{index~.Options~`com.example.unknown`}} full", stdout: "overlay,swarm,true,true,true,db,kept\n"},
		{args: `network inspect -f {{index~.Options~"com.docker.network.driver.overlay.vxlanid_list"}}/{{index~.Options~"com.docker.network.driver.mtu"}}/{{index~.Options~"encrypted"}} full`, stdout: "5000/1400/\n"},
		{args: "network inspect -f " + ipam + " full", stdout: "10.9.0.0/24,10.9.0.128/25,10.9.0.254,map[router:10.9.0.253];fd00:9::/64,,fd00:9::1,map[];"},
		{args: "service create -d --name bad --network nonet nginx", stderr: "network nonet not found", code: 1},
		{args: "service create -d --name bad --network mine nginx", stderr: "network mine not found", code: 1},
		{args: "service create -d --name bad --network ingress nginx", stderr: "Service cannot be explicitly attached to the ingress network", code: 1},
		{args: "service create -d --name bad --endpoint-mode dnsrr -p 80:80 nginx", stderr: "port published with ingress mode can't be used with dnsrr mode", code: 1},
		{args: "service create --name web --replicas 2 --network name=full,alias=www,alias=db --network plain -p 8080:80 --update-monitor 1s nginx", stdout: "converged\n"},
		{args: "service inspect -f {{len~.Endpoint.VirtualIPs}} web", stdout: "4\n"},
		{args: "service inspect --pretty web", stdout: "Endpoint Mode:\tvip"},
		{args: "service create -d --name rr --network plain --endpoint-mode dnsrr nginx"},
		{args: "network inspect --verbose full", stdout: `"IPv4Address": "10.9.0.130/24"`},
		{args: "network inspect --verbose -f {{.Services.web.VIP}},{{len~.Services.web.Tasks}},{{len~.Containers}},{{(index~.Peers~0).IP}} full", stdout: "10.9.0.128,2,2,192.168.78.1\n"},
		{args: "network inspect --verbose -f {{.Services.web.Ports}} ingress", stdout: "[Target: 80, Publish: 8080]\n"},
		{args: "network rm plain", stderr: "is in use by service", code: 1},
		{args: "network rm bridge", stderr: "bridge is a pre-defined network and cannot be removed", code: 1},
		{args: "network rm nope", stderr: "network nope not found", code: 1},
		{args: "network connect plain web", stderr: "network plain not manually attachable", code: 1},
		{args: "network connect --alias www full web", stderr: "web goes to full as [www]", code: 1},
		{args: "network disconnect full web"},
		{args: "network prune -f"},
		{args: "service update --detach=false --network-rm full --update-monitor 1s web", stdout: "converged\n"},
		{args: "network rm full", stdout: "full\n"},
		{args: "network prune -f", stdout: ""},
		{args: "service rm web rr", stdout: "web\nrr\n"},
		{args: "network prune -f --filter label=none"},
		{args: "network prune -f --filter until=1h"},
		{args: "network ls --filter name=plain --format {{.Name}}", stdout: "plain\n"},
		{args: "network prune -f", stdout: "Deleted Networks:\nplain\n"},
		{args: "stack deploy -c " + stack + " st", stdout: "Creating network st_back"},
		{args: "stack deploy -c " + stack + " st", stdout: "Updating service st_one"},
		{args: "network inspect -f {{.Attachable}},{{(index~.IPAM.Config~0).Subnet}} st_back", stdout: "true,10.77.0.0/24\n"},
		{args: "service inspect -f {{len~.Endpoint.VirtualIPs}},{{len~.Spec.TaskTemplate.Networks}} st_one", stdout: "2,2\n"},
		{args: "stack rm st", stdout: "Removing network st_front"},
		{args: "network ls --filter label=com.docker.stack.namespace=st -q", stdout: ""},
		{args: "service create -d --name pub -p 80:80 nginx"},
		{args: "network rm ingress", stdout: "WARNING! Before removing the routing-mesh network", stderr: "ingress network cannot be removed because service", code: 1},
		{args: "service rm pub", stdout: "pub\n"},
		{args: "network rm ingress", stdout: "ingress\n"},
		{args: "service create -d --name pub -p 80:80 nginx", stderr: "service needs ingress network, but no ingress network is present", code: 1},
		{args: "network create -d overlay --ingress --attachable in", stderr: "ingress network cannot be attachable", code: 1},
		{args: "network create -d overlay --ingress --subnet 10.66.0.0/24 --opt com.docker.network.driver.mtu=1200 in"},
		{args: "service create --name pub -p 80:80 --update-monitor 1s nginx", stdout: "converged\n"},
		{args: "service inspect -f {{(index~.Endpoint.VirtualIPs~0).Addr}} pub", stdout: "10.66.0.2/24\n"},
	} {
		args := strings.Fields(tt.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "~", " ")
		}
		stdout, stderr, code := n.docker(t, "y\n", args...)
		if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("docker %s: code %d, stdout %q, stderr %q;\nwant %d, %q, %q", tt.args, code, stdout, stderr, tt.code, tt.stdout, tt.stderr)
		}
	}
	_, _, seen := m.call(t, "GET", fmt.Sprintf("/events?since=0&until=%d&filters={%%22network%%22:[%%22plain%%22]}", time.Now().Unix()+1), "")
	for _, part := range []string{`"Type":"network","Action":"create"`, `"Action":"remove"`, `"name":"plain"`, `"scope":"swarm"`} {
		if !strings.Contains(seen, part) {
			t.Errorf("events: got %s, want %s in it", seen, part)
		}
	}
}
