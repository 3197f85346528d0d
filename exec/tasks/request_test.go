package tasks

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// assignment is a task of a service that says everything that can be said.
func assignment() *object.Assignment {
	grace := 3 * time.Second
	yes := true
	spec := swarm.TaskSpec{
		Networks: []swarm.NetworkAttachmentConfig{{Target: "net1", Aliases: []string{"www"}}},
		ContainerSpec: &swarm.ContainerSpec{
			Image:           "busybox:1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
			Labels:          map[string]string{"own": "label"},
			Command:         []string{"/entry"},
			Args:            []string{"a", "b"},
			Hostname:        "{{.Service.Name}}-{{.Task.Slot}}",
			Env:             []string{"PLAIN=1", "NODE={{.Node.Hostname}}", "TASK={{.Task.Name}}"},
			Dir:             "/work",
			User:            "alice",
			Groups:          []string{"50"},
			Init:            &yes,
			StopSignal:      "SIGUSR1",
			TTY:             true,
			OpenStdin:       true,
			ReadOnly:        true,
			StopGracePeriod: &grace,
			Privileges:      &swarm.Privileges{NoNewPrivileges: true, Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}},
			Hosts:           []string{"10.0.0.1 db db.local"},
			Sysctls:         map[string]string{"net.ipv4.ip_forward": "1"},
			CapabilityAdd:   []string{"CAP_NET_ADMIN"},
			CapabilityDrop:  []string{"CAP_CHOWN"},
			Ulimits:         []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}},
			OomScoreAdj:     100,
			Healthcheck:     &container.HealthConfig{Test: []string{"CMD", "true"}},
			Mounts: []mount.Mount{
				{Type: mount.TypeVolume, Source: "v-{{.Task.Slot}}", Target: "/data", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"of": "{{.Service.Name}}"}}},
				{Type: mount.TypeBind, Source: "/srv", Target: "/srv", ReadOnly: true},
				{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}},
			},
			Secrets: []*swarm.SecretReference{
				{SecretID: "s1", SecretName: "key", File: &swarm.SecretReferenceFileTarget{Name: "key", UID: "1000", GID: "50", Mode: 0o400}},
			},
			Configs: []*swarm.ConfigReference{
				{ConfigID: "c1", ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "/etc/app.conf", UID: "0", GID: "0", Mode: 0o444}},
			},
		},
		Resources: &swarm.ResourceRequirements{
			Limits:       &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 64 << 20, Pids: 7},
			Reservations: &swarm.Resources{MemoryBytes: 32 << 20},
		},
		LogDriver: &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m"}},
	}
	conf := &object.Config{}
	conf.ID, conf.Spec.Data = "c1", []byte(`on {{.Node.Hostname}} with {{secret "key"}}`)
	conf.Spec.Templating = &swarm.Driver{Name: "golang"}
	secret := &object.Secret{}
	secret.ID, secret.Spec.Data = "s1", []byte("sesame {{not a template")
	return &object.Assignment{
		Task: &object.Task{
			ID: "task1", ServiceID: "svc1", Slot: 2, NodeID: "node1",
			Networks: []object.TaskNetwork{
				{ID: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.5/24"), netip.MustParsePrefix("fd00::5/64")}, Aliases: []string{"www"}},
				{ID: "net0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}},
			},
			Ports: []swarm.PortConfig{
				{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress},
				{Protocol: "udp", TargetPort: 53, PublishMode: swarm.PortConfigPublishModeHost},
			},
		},
		Revision: &object.Revision{ServiceID: "svc1", Service: swarm.Annotations{Name: "web"}, Spec: spec},
		Node:     object.NodeInfo{ID: "node1", Hostname: "n1"},
		Secrets:  []*object.Secret{secret},
		Configs:  []*object.Config{conf},
	}
}

func TestRequest_IsWhatTheSpecSays(t *testing.T) {
	a := assignment()
	req, err := request(a)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := files(a)
	if err != nil {
		t.Fatal(err)
	}
	ports, overlays := places(a)
	got, err := json.MarshalIndent(map[string]any{"name": containerName(a), "request": req, "files": fs, "ports": ports, "overlays": overlays}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "request.json")
	if *update {
		if err = os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("the request differs from %s; got\n%s", golden, got)
	}
}

func TestPlaces(t *testing.T) {
	mesh := object.Port{Protocol: "tcp", Host: 8080, Container: 80}
	host := object.Port{Protocol: "udp", Container: 53}
	overlay := func(id string, ports ...object.Port) object.Overlay {
		return object.Overlay{Network: id, Task: "task1", Ingress: len(ports) > 0, Ports: ports}
	}
	tests := []struct {
		name     string
		change   func(*object.Assignment)
		ports    []object.Port
		overlays []object.Overlay
	}{
		{"in the mesh", func(*object.Assignment) {}, []object.Port{host}, []object.Overlay{overlay("net1"), overlay("net0", mesh)}},
		{"no place in the mesh", func(a *object.Assignment) { a.Task.Networks = a.Task.Networks[:1] }, []object.Port{host}, []object.Overlay{overlay("net1")}},
		{"nothing for the mesh", func(a *object.Assignment) { a.Task.Ports = a.Task.Ports[1:] }, []object.Port{host}, []object.Overlay{overlay("net1"), overlay("net0")}},
		{"the node's own network", func(a *object.Assignment) {
			a.Revision.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "host"}}
		}, []object.Port{host}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := assignment()
			for i := range a.Task.Networks {
				a.Task.Networks[i].Addresses, a.Task.Networks[i].Aliases = nil, nil
			}
			tt.change(a)
			ports, overlays := places(a)
			if diff := cmp.Diff(tt.ports, ports); diff != "" {
				t.Errorf("ports: %s", diff)
			}
			if diff := cmp.Diff(tt.overlays, overlays); diff != "" {
				t.Errorf("overlays: %s", diff)
			}
		})
	}
}

func TestRequest_RefusesWhatTheNodeCannotDo(t *testing.T) {
	tests := []struct {
		name   string
		change func(*swarm.ContainerSpec)
		want   string
	}{
		{"relative target", func(s *swarm.ContainerSpec) { s.Mounts[0].Target = "data" }, "invalid mount target, must be an absolute path: data"},
		{"relative bind", func(s *swarm.ContainerSpec) { s.Mounts[1].Source = "srv" }, "invalid bind mount source, must be an absolute path: srv"},
		{"absolute volume", func(s *swarm.ContainerSpec) { s.Mounts[0].Source = "/v" }, "invalid volume mount source, must not be an absolute path: /v"},
		{"tmpfs with a source", func(s *swarm.ContainerSpec) { s.Mounts[2].Source = "x" }, "invalid tmpfs source, source must be empty"},
		{"unknown mount", func(s *swarm.ContainerSpec) { s.Mounts[0].Type = "npipe" }, "invalid mount type: npipe"},
		{"unknown field", func(s *swarm.ContainerSpec) { s.Env = []string{"A={{.Task.Color}}"} }, `expanding env "A={{.Task.Color}}"`},
		{"broken template", func(s *swarm.ContainerSpec) { s.Hostname = "{{" }, `expanding hostname "{{"`},
		{"endless template", func(s *swarm.ContainerSpec) { s.Hostname = `{{printf "%2000000d" 1}}` }, "template grows past"},
		{"foreign secret", func(s *swarm.ContainerSpec) { s.Secrets[0].SecretID = "s9" }, "secret key: not assigned to this node"},
		{"secret of nobody", func(s *swarm.ContainerSpec) { s.Secrets[0].File.UID = "alice" }, `owner "alice": want a number`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := assignment()
			tt.change(a.Revision.Spec.ContainerSpec)
			_, err := request(a)
			if err == nil {
				_, err = files(a)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestContainerName_OfAGlobalTaskHasItsNode(t *testing.T) {
	a := assignment()
	a.Task.Slot = 0
	if got, want := containerName(a), "web.node1.task1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
