package engine_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func TestSwarm_ShowsWhatItIsWithoutItsKey(t *testing.T) {
	m := initialised(t)
	_, _, body := m.call(t, "GET", "/v1.51/swarm", "")
	if strings.Contains(body, "canary") {
		t.Fatalf("swarm shows its key: %s", body)
	}
	c := m.client(t)
	got, err := c.SwarmInspect(t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := swarm.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"}
	if got.Swarm.JoinTokens != want || got.Swarm.Spec.Name != "default" || got.Swarm.SubnetSize != 24 {
		t.Errorf("got %+v", got.Swarm)
	}
	if diff := cmp.Diff([]netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, got.Swarm.DefaultAddrPool, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	m.role = admin.Viewer
	if got, err = c.SwarmInspect(t.Context(), client.SwarmInspectOptions{}); err != nil || got.Swarm.JoinTokens != (swarm.JoinTokens{}) {
		t.Errorf("a viewer sees %+v, %v", got.Swarm.JoinTokens, err)
	}
}

func TestSwarm_UpdateReplacesTheSpecAndRotatesTokens(t *testing.T) {
	m := initialised(t)
	c := m.client(t)
	before, err := c.SwarmInspect(t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := before.Swarm.Spec
	spec.Orchestration.TaskHistoryRetentionLimit = new(int64(3))
	if _, err = c.SwarmUpdate(t.Context(), client.SwarmUpdateOptions{Version: before.Swarm.Version, Spec: spec, RotateWorkerToken: true}); err != nil {
		t.Fatal(err)
	}
	after, err := c.SwarmInspect(t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := *after.Swarm.Spec.Orchestration.TaskHistoryRetentionLimit; got != 3 {
		t.Errorf("history limit is %d", got)
	}
	spec.Dispatcher.HeartbeatPeriod = -time.Second
	_, err = c.SwarmUpdate(t.Context(), client.SwarmUpdateOptions{Version: after.Swarm.Version, Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "heartbeat time period cannot be a negative duration") {
		t.Errorf("a negative period: %v", err)
	}
	if after.Swarm.JoinTokens.Worker == before.Swarm.JoinTokens.Worker || after.Swarm.JoinTokens.Manager != before.Swarm.JoinTokens.Manager {
		t.Errorf("tokens were %v and are %v", before.Swarm.JoinTokens, after.Swarm.JoinTokens)
	}
}

func TestSystem_AnswersAsClientsExpect(t *testing.T) {
	m := newManager(t)
	m.images.digests["nginx:latest"] = digest.FromString("nginx")
	_, header, body := m.call(t, "GET", "/_ping", "")
	for key, want := range map[string]string{
		"Api-Version": "1.51", "Ostype": "linux", "Docker-Experimental": "false", "Builder-Version": "2", "Swarm": "inactive",
		"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache", "Content-Type": "text/plain; charset=utf-8",
		"Server": "Skep/0.1 (linux)",
	} {
		if got := header.Get(key); got != want {
			t.Errorf("ping has %s %q, want %q", key, got, want)
		}
	}
	if body != "OK" {
		t.Errorf("ping says %q", body)
	}
	if _, err := m.Init(t.Context(), swarm.InitRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, header, _ := m.call(t, "HEAD", "/_ping", ""); header.Get("Swarm") != "active/manager" {
		t.Errorf("ping says of the swarm: %q", header.Get("Swarm"))
	}
	c := m.client(t)
	v, err := c.ServerVersion(t.Context(), client.ServerVersionOptions{})
	if err != nil || v.APIVersion != "1.51" || v.MinAPIVersion != "1.24" || len(v.Components) != 1 {
		t.Errorf("version %+v, %v", v, err)
	}
	var info system.Info
	m.ok(t, "GET", "/v1.24/info", "", &info)
	if info.Containers != 3 || info.ContainersRunning != 1 || info.ContainersPaused != 1 || info.ContainersStopped != 1 || info.Images != 1 {
		t.Errorf("counts of %+v", info)
	}
	if s := info.Swarm; s.Nodes != 1 || s.Managers != 1 || s.Cluster == nil || s.Cluster.Spec.Name != "default" || !s.ControlAvailable {
		t.Errorf("swarm of %+v", s)
	}
	if _, _, body := m.call(t, "GET", "/plugins", ""); body != "[]" {
		t.Errorf("plugins are %s", body)
	}
	if _, err := c.RegistryLogin(t.Context(), client.RegistryLoginOptions{Username: "u", Password: "wrong"}); err == nil || !strings.Contains(err.Error(), "incorrect username") {
		t.Errorf("login: %v", err)
	}
	if got, err := c.RegistryLogin(t.Context(), client.RegistryLoginOptions{Username: "u", Password: "right"}); err != nil || got.Auth.Status != "Login Succeeded" {
		t.Errorf("login: %+v, %v", got, err)
	}
}

func TestDistribution_TakesNamesWithSlashes(t *testing.T) {
	m := newManager(t)
	m.images.digests["reg.example:5000/a/b:1"] = digest.FromString("b")
	var got registry.DistributionInspect
	m.ok(t, "GET", "/v1.41/distribution/reg.example:5000/a/b:1/json", "", &got)
	if got.Descriptor.Digest != digest.FromString("b") || len(got.Platforms) != 1 {
		t.Errorf("got %+v", got)
	}
	for path, want := range map[string]int{"/distribution/nope/json": 500, "/distribution/nope": 404, "/distribution/a/b": 404} {
		if status, _, body := m.call(t, "GET", path, ""); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
}

func TestNodes_AreListedUpdatedAndRemoved(t *testing.T) {
	m := initialised(t)
	worker := &object.Node{Node: swarm.Node{
		ID:          object.NewID(),
		Spec:        swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive, Annotations: swarm.Annotations{Labels: map[string]string{"zone": "a"}}},
		Description: swarm.NodeDescription{Hostname: "node2", Engine: swarm.EngineDescription{Labels: map[string]string{"disk": "ssd"}}},
		Status:      swarm.NodeStatus{State: swarm.NodeStateReady},
	}}
	m.store.Write(t, func(tx *store.Tx) { tx.Create(worker) })
	c := m.client(t)
	for _, tt := range []struct {
		key, value string
		want       int
	}{
		{"role", "manager", 1},
		{"role", "worker", 1},
		{"name", "node", 2},
		{"name", "node2", 1},
		{"id", worker.ID[:6], 1},
		{"node.label", "zone=a", 1},
		{"node.label", "zone=b", 0},
		{"label", "disk", 1},
		{"membership", "accepted", 2},
		{"membership", "pending", 0},
	} {
		got, err := c.NodeList(t.Context(), client.NodeListOptions{Filters: client.Filters{}.Add(tt.key, tt.value)})
		if err != nil || len(got.Items) != tt.want {
			t.Errorf("filter %s=%s: %d nodes, %v; want %d", tt.key, tt.value, len(got.Items), err, tt.want)
		}
	}
	n, err := c.NodeInspect(t.Context(), "node2", client.NodeInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Node.Spec.Availability = swarm.NodeAvailabilityDrain
	if _, err := c.NodeUpdate(t.Context(), n.Node.ID, client.NodeUpdateOptions{Version: n.Node.Version, Spec: n.Node.Spec}); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.store.Snapshot().Nodes.Get(worker.ID); got.Spec.Availability != swarm.NodeAvailabilityDrain || got.Spec.Labels["zone"] != "a" {
		t.Errorf("node is %+v", got.Spec)
	}
	if _, err := c.NodeRemove(t.Context(), "node2", client.NodeRemoveOptions{}); err == nil || !strings.Contains(err.Error(), "is not down and can't be removed") {
		t.Errorf("removed a node that is up: %v", err)
	}
	if _, err := c.NodeRemove(t.Context(), "node2", client.NodeRemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if n := m.store.Snapshot().Nodes.Len(); n != 1 {
		t.Errorf("%d nodes are left", n)
	}
}

func TestSecretsAndConfigs_LiveTheirLife(t *testing.T) {
	m := initialised(t)
	c := m.client(t)
	s, err := c.SecretCreate(t.Context(), client.SecretCreateOptions{Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: "pass", Labels: map[string]string{"a": "b"}}, Data: []byte("canary")}})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := c.ConfigCreate(t.Context(), client.ConfigCreateOptions{Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf"}, Data: []byte("text")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/secrets", "/secrets/pass", "/secrets/" + s.ID[:8]} {
		if _, _, body := m.call(t, "GET", path, ""); strings.Contains(body, "Data") || !strings.Contains(body, s.ID) || strings.Contains(body, "Y2FuYXJ5") {
			t.Errorf("%s: %s", path, body)
		}
	}
	got, err := c.ConfigInspect(t.Context(), "conf", client.ConfigInspectOptions{})
	if err != nil || string(got.Config.Spec.Data) != "text" {
		t.Errorf("config has %q, %v", got.Config.Spec.Data, err)
	}
	for value, want := range map[string]int{"a": 1, "a=b": 1, "a=c": 0} {
		list, failed := c.SecretList(t.Context(), client.SecretListOptions{Filters: client.Filters{}.Add("label", value)})
		if failed != nil {
			t.Fatal(failed)
		}
		if len(list.Items) != want {
			t.Errorf("label %s: %d secrets, want %d", value, len(list.Items), want)
		}
	}
	secret, err := c.SecretInspect(t.Context(), "pass", client.SecretInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A client posts what it was shown, which is without the data.
	secret.Secret.Spec.Labels = map[string]string{"new": "1"}
	if _, err := c.SecretUpdate(t.Context(), s.ID, client.SecretUpdateOptions{Version: secret.Secret.Version, Spec: secret.Secret.Spec}); err != nil {
		t.Fatal(err)
	}
	if o, _ := m.store.Snapshot().Secrets.Get(s.ID); string(o.Spec.Data) != "canary" || o.Spec.Labels["new"] != "1" {
		t.Errorf("secret is %+v", o.Spec)
	}
	got.Config.Spec.Data = []byte("other")
	if _, err := c.ConfigUpdate(t.Context(), cfg.ID, client.ConfigUpdateOptions{Version: got.Config.Version, Spec: got.Config.Spec}); err == nil || !strings.Contains(err.Error(), "only updates to Labels are allowed") {
		t.Errorf("changed a config's data: %v", err)
	}
	if _, err := c.SecretRemove(t.Context(), "pass", client.SecretRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := c.ConfigRemove(t.Context(), "conf", client.ConfigRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if s := m.store.Snapshot(); s.Secrets.Len()+s.Configs.Len() != 0 {
		t.Error("something is left")
	}
}
