package engine_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"skep/store"
	"skep/store/object"
)

func spec(name, image string) swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}},
	}
}

func (m *manager) service(t *testing.T, ref string) *object.Service {
	t.Helper()
	o, err := m.store.Snapshot().Services.Find(ref)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// addTask puts a task of the service's present revision into the store.
func (m *manager) addTask(t *testing.T, o *object.Service, slot int, desired, state swarm.TaskState) *object.Task {
	t.Helper()
	task := &object.Task{
		ID: object.NewID(), ServiceID: o.ID, SpecVersion: o.SpecVersion, Slot: slot, NodeID: m.nodeID, DesiredState: desired,
		Status: swarm.TaskStatus{State: state, Timestamp: time.Now(), ContainerStatus: &swarm.ContainerStatus{ContainerID: "c"}},
	}
	m.store.Write(t, func(tx *store.Tx) { tx.Create(task) })
	return task
}

func TestServiceCreate_StoresFewDefaultsAndShowsAll(t *testing.T) {
	m := initialised(t)
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Args":["top"]}}}`, nil)
	_, _, body := m.call(t, "GET", "/services/web?insertDefaults=false", "")
	want := `"Spec":{"Name":"web","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"busybox","Args":["top"],"Isolation":"default"},"ForceUpdate":0,"Runtime":"container"},"Mode":{"Replicated":{"Replicas":1}}},"Endpoint":{"Spec":{}}}`
	if !strings.HasSuffix(body, want) {
		t.Errorf("got  %s\nwant …%s", body, want)
	}
	_, _, body = m.call(t, "GET", "/services/web?insertDefaults=true", "")
	for _, want := range []string{
		`"StopGracePeriod":10000000000`, `"RestartPolicy":{"Condition":"any","Delay":5000000000,"MaxAttempts":0}`, `"EndpointSpec":{"Mode":"vip"}`,
		`"UpdateConfig":{"Parallelism":1,"FailureAction":"pause","Monitor":5000000000,"MaxFailureRatio":0,"Order":"stop-first"}`,
		`"RollbackConfig":{"Parallelism":1,"FailureAction":"pause","Monitor":5000000000,"MaxFailureRatio":0,"Order":"stop-first"}`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%s lacks %s", body, want)
		}
	}
	if s := m.service(t, "web"); s.Spec.UpdateConfig != nil || s.Spec.TaskTemplate.RestartPolicy != nil {
		t.Errorf("stored %+v", s.Spec)
	}
}

func TestServiceCreate_PinsWhatTheClientDidNot(t *testing.T) {
	d := digest.FromString("nginx")
	tests := []struct{ image, want, warning string }{
		{"nginx", "nginx:latest@" + d.String(), ""},
		{"nginx:latest", "nginx:latest@" + d.String(), ""},
		{"docker.io/library/nginx", "nginx:latest@" + d.String(), ""},
		{"other@" + d.String(), "other@" + d.String(), ""},
		{"unknown:1", "unknown:1", "unable to pin image unknown:1 to digest: registry is unreachable"},
	}
	for _, tt := range tests {
		m := initialised(t)
		m.images.digests["nginx:latest"] = d
		got, err := m.client(t).ServiceCreate(t.Context(), client.ServiceCreateOptions{Spec: spec("web", tt.image), EncodedRegistryAuth: "eyJ1c2VybmFtZSI6InUifQ=="})
		if err != nil {
			t.Fatal(err)
		}
		if warning := strings.Join(got.Warnings, "\n"); warning != tt.warning {
			t.Errorf("%s: warning %q, want %q", tt.image, warning, tt.warning)
		}
		s := m.service(t, "web")
		if image := s.Spec.TaskTemplate.ContainerSpec.Image; image != tt.want {
			t.Errorf("%s is stored as %s, want %s", tt.image, image, tt.want)
		}
		if s.Auth == nil || s.Auth.Username != "u" {
			t.Errorf("%s: stored credentials %+v", tt.image, s.Auth)
		}
		if strings.HasPrefix(tt.want, "nginx") && (m.images.auth == nil || s.Spec.TaskTemplate.Placement.Platforms[0].Architecture != "amd64") {
			t.Errorf("%s: asked with %+v, placed by %+v", tt.image, m.images.auth, s.Spec.TaskTemplate.Placement)
		}
	}
}

func TestServiceUpdate_ScalesRollsBackAndKeepsCredentials(t *testing.T) {
	m := initialised(t)
	c := m.client(t)
	if _, err := c.ServiceCreate(t.Context(), client.ServiceCreateOptions{Spec: spec("web", "busybox"), EncodedRegistryAuth: "eyJ1c2VybmFtZSI6InUifQ=="}); err != nil {
		t.Fatal(err)
	}
	first := m.service(t, "web")
	task := m.addTask(t, first, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	update := func(opts client.ServiceUpdateOptions, change func(*swarm.ServiceSpec)) *object.Service {
		t.Helper()
		o := m.service(t, "web")
		opts.Version, opts.Spec = o.Version, object.Copy(o.Spec)
		if change != nil {
			change(&opts.Spec)
		}
		if _, err := c.ServiceUpdate(t.Context(), "web", opts); err != nil {
			t.Fatal(err)
		}
		return m.service(t, "web")
	}
	upToDate := func() int {
		got, err := c.TaskList(t.Context(), client.TaskListOptions{Filters: client.Filters{}.Add("service", "web").Add("_up-to-date", "true")})
		if err != nil {
			t.Fatal(err)
		}
		return len(got.Items)
	}
	// The image is not known: it could not be pinned, but scaling is no reason to try again.
	m.images.digests["busybox:latest"] = digest.FromString("busybox")
	scaled := update(client.ServiceUpdateOptions{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(3)) })
	if scaled.SpecVersion != first.SpecVersion || *scaled.PreviousSpec.Mode.Replicated.Replicas != 1 || scaled.Auth.Username != "u" {
		t.Errorf("scaled to %+v", scaled)
	}
	if n := upToDate(); n != 1 {
		t.Errorf("%d tasks are up to date after scaling", n)
	}
	forced := update(client.ServiceUpdateOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	if image := forced.Spec.TaskTemplate.ContainerSpec.Image; !strings.HasPrefix(image, "busybox:latest@sha256:") {
		t.Errorf("forced update did not pin %s", image)
	}
	if n := upToDate(); n != 0 {
		t.Errorf("%d tasks are up to date after a forced update", n)
	}
	var shown swarm.Task
	m.ok(t, "GET", "/tasks/"+task.ID, "", &shown)
	if shown.Spec.ContainerSpec == nil || shown.Spec.ContainerSpec.Image != "busybox:latest" {
		t.Errorf("the old task shows %+v", shown.Spec.ContainerSpec)
	}
	back := update(client.ServiceUpdateOptions{Rollback: "previous"}, nil)
	if back.UpdateStatus.State != swarm.UpdateStateRollbackStarted || back.UpdateStatus.Message != "manually requested rollback" ||
		back.Spec.TaskTemplate.ForceUpdate != 0 || back.PreviousSpec.TaskTemplate.ForceUpdate != 1 {
		t.Errorf("rolled back to %+v, status %+v", back.Spec, back.UpdateStatus)
	}
	if n := upToDate(); n != 1 {
		t.Errorf("%d tasks are up to date after rolling back", n)
	}
}

func TestServiceList_FiltersAndCounts(t *testing.T) {
	m := initialised(t)
	for _, body := range []string{
		`{"Name":"web","Labels":{"stack":"one"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}},"Mode":{"Replicated":{"Replicas":2}}}`,
		`{"Name":"agent","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}},"Mode":{"Global":{}}}`,
	} {
		m.ok(t, "POST", "/services/create", body, nil)
	}
	web, agent := m.service(t, "web"), m.service(t, "agent")
	m.addTask(t, web, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	m.addTask(t, web, 1, swarm.TaskStateShutdown, swarm.TaskStateRunning)
	m.addTask(t, web, 2, swarm.TaskStateRunning, swarm.TaskStatePreparing)
	m.addTask(t, agent, 0, swarm.TaskStateRunning, swarm.TaskStateReady)
	tests := []struct{ query, want string }{
		{"", "agent web"},
		{`{"name":{"we":true}}`, "web"},
		{`{"name":["we","ag"]}`, "agent web"},
		{`{"mode":{"global":true}}`, "agent"},
		{`{"label":["stack=one"]}`, "web"},
		{`{"label":["stack=two"]}`, ""},
		{`{"id":["` + web.ID[:5] + `"]}`, "web"},
		{`{"runtime":["plugin"]}`, ""},
	}
	for _, tt := range tests {
		var list []swarm.Service
		m.ok(t, "GET", "/services?filters="+url.QueryEscape(tt.query), "", &list)
		names := map[string]bool{}
		for _, s := range list {
			names[s.Spec.Name] = true
			if s.ServiceStatus != nil {
				t.Errorf("%s: status was not asked for", tt.query)
			}
		}
		var got []string
		for _, name := range []string{"agent", "web"} {
			if names[name] {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %v, want %s", tt.query, got, tt.want)
		}
	}
	var list []swarm.Service
	m.ok(t, "GET", "/v1.41/services?status=true", "", &list)
	want := map[string]swarm.ServiceStatus{"web": {RunningTasks: 2, DesiredTasks: 2}, "agent": {DesiredTasks: 1}}
	for _, s := range list {
		if s.ServiceStatus == nil || *s.ServiceStatus != want[s.Spec.Name] {
			t.Errorf("%s has status %+v, want %+v", s.Spec.Name, s.ServiceStatus, want[s.Spec.Name])
		}
	}
	list = nil
	if m.ok(t, "GET", "/v1.40/services?status=true", "", &list); list[0].ServiceStatus != nil {
		t.Error("1.40 knows no status")
	}
}

func TestTaskList_Filters(t *testing.T) {
	m := initialised(t)
	m.ok(t, "POST", "/services/create", `{"Name":"web","Labels":{"stack":"one"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	m.ok(t, "POST", "/services/create", `{"Name":"db","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	web, db := m.service(t, "web"), m.service(t, "db")
	one := m.addTask(t, web, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	m.addTask(t, web, 2, swarm.TaskStateShutdown, swarm.TaskStateFailed)
	m.addTask(t, db, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	tests := []struct {
		filters string
		want    int
	}{
		{`{}`, 3},
		{`{"service":["web"]}`, 2},
		{`{"service":["web","db"]}`, 3},
		{`{"service":["` + web.ID[:10] + `"],"desired-state":["running"]}`, 1},
		{`{"node":["node1"]}`, 3},
		{`{"label":["stack=one"]}`, 2},
		{`{"name":["web.1"]}`, 1},
		{`{"name":["web"]}`, 2},
		{`{"id":["` + one.ID[:8] + `"]}`, 1},
		{`{"runtime":["container"]}`, 3},
		{`{"runtime":["plugin"]}`, 0},
	}
	for _, tt := range tests {
		var list []swarm.Task
		m.ok(t, "GET", "/tasks?filters="+url.QueryEscape(tt.filters), "", &list)
		if len(list) != tt.want {
			t.Errorf("%s: %d tasks, want %d", tt.filters, len(list), tt.want)
		}
	}
	for filters, want := range map[string]string{
		`{"desired-state":["fine"]}`: "Invalid desired-state filter: 'fine'",
		`{"node":["nope"]}`:          "node nope not found",
		`{"_up-to-date":["maybe"]}`:  "invalid filter '_up-to-date=[maybe]'",
	} {
		if _, _, body := m.call(t, "GET", "/tasks?filters="+url.QueryEscape(filters), ""); message(t, body) != want {
			t.Errorf("%s: %s, want %s", filters, body, want)
		}
	}
	m.ok(t, "DELETE", "/services/web", "", nil)
	if _, err := m.store.Snapshot().Services.Find("web"); err == nil {
		t.Error("the service is still there")
	}
}

func TestService_RefersToSecretsConfigsNetworksAndPorts(t *testing.T) {
	m := initialised(t)
	var secret, config struct{ ID string }
	m.ok(t, "POST", "/secrets/create", `{"Name":"s","Data":"aGk="}`, &secret)
	m.ok(t, "POST", "/configs/create", `{"Name":"c","Data":"aGk="}`, &config)
	body := func(name, mode string) string {
		return fmt.Sprintf(`{"Name":%q,"TaskTemplate":{"ContainerSpec":{"Image":"busybox",
			"Secrets":[{"SecretID":%q,"SecretName":"s","File":{"Name":"s","UID":"0","GID":"0","Mode":292}}],
			"Configs":[{"ConfigID":%q,"ConfigName":"c","File":{"Name":"/c","UID":"0","GID":"0","Mode":292}}]},
			"Networks":[{"Target":"id-of-bridge"}]},
			"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080,"PublishMode":%q}]}}`, name, secret.ID, config.ID, mode)
	}
	m.ok(t, "POST", "/services/create", body("one", "host"), nil)
	m.ok(t, "POST", "/services/create", body("two", "host"), nil)
	if got := m.service(t, "one").Spec.TaskTemplate.Networks[0].Target; got != "bridge" {
		t.Errorf("network is stored as %q", got)
	}
	one := m.service(t, "one")
	want := "port '8080' is already in use by service"
	if status, _, text := m.call(t, "POST", "/services/create", body("three", "ingress")); status != 400 ||
		!strings.HasPrefix(message(t, text), want) || !strings.HasSuffix(message(t, text), "as a host-published port") {
		t.Errorf("%d %s", status, text)
	}
	// A service does not conflict with itself.
	m.ok(t, "POST", fmt.Sprintf("/services/one/update?version=%d", one.Version.Index), body("one", "host"), nil)
	for _, path := range []string{"/secrets/s", "/configs/c"} {
		kind := strings.TrimSuffix(strings.Split(path, "/")[1], "s")
		status, _, text := m.call(t, "DELETE", path, "")
		got := message(t, text)
		if prefix := fmt.Sprintf("%s '%s' is in use by the following services: ", kind, path[len(path)-1:]); status != 400 || !strings.HasPrefix(got, prefix) {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
}

func TestService_OldClientsMeanWhatTheirVersionHad(t *testing.T) {
	m := initialised(t)
	body := `{"Name":%q,"Networks":[{"Target":"host"}],"TaskTemplate":{"Placement":{"MaxReplicas":2},
		"Resources":{"Limits":{"Pids":5},"SwapBytes":1},"ContainerSpec":{"Image":"busybox","OomScoreAdj":3,
		"Sysctls":{"a":"b"},"CapabilityAdd":["CAP_X"],"Privileges":{"NoNewPrivileges":true},"Unknown":[{"newer":1}]}}}`
	tests := []struct {
		version                                       string
		networks, replicas, pids, oom, sysctls, capAd int
		noNew                                         bool
	}{
		{"v1.39", 1, 0, 0, 0, 0, 0, false},
		{"v1.40", 1, 2, 0, 0, 1, 0, false},
		{"v1.43", 1, 2, 5, 0, 1, 1, false},
		{"v1.45", 0, 2, 5, 0, 1, 1, true},
		{"v1.51", 0, 2, 5, 3, 1, 1, true},
	}
	for i, tt := range tests {
		name := fmt.Sprintf("s%d", i)
		m.ok(t, "POST", "/"+tt.version+"/services/create", fmt.Sprintf(body, name), nil)
		task := m.service(t, name).Spec.TaskTemplate
		c := task.ContainerSpec
		if len(task.Networks) != tt.networks || int(task.Placement.MaxReplicas) != tt.replicas || int(task.Resources.Limits.Pids) != tt.pids ||
			int(c.OomScoreAdj) != tt.oom || len(c.Sysctls) != tt.sysctls || len(c.CapabilityAdd) != tt.capAd ||
			c.Privileges.NoNewPrivileges != tt.noNew || task.Resources.SwapBytes != nil {
			t.Errorf("%s: stored %+v, %+v", tt.version, task, c)
		}
	}
}
