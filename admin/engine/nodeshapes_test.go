package engine_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"

	"skep/admin"
)

// call is one request; body and header may be empty.
func (n *node) call(tb testing.TB, methodPath, body string, header ...string) (int, string) {
	tb.Helper()
	method, path, _ := strings.Cut(methodPath, " ")
	req, err := http.NewRequestWithContext(tb.Context(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := n.http.RoundTrip(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

// get decodes a reply.
func get[T any](tb testing.TB, n *node, methodPath, body string) T {
	tb.Helper()
	var v T
	status, text := n.call(tb, methodPath, body)
	if status >= 300 {
		tb.Fatalf("%s: %d %s", methodPath, status, text)
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		tb.Fatalf("%s: %v in %s", methodPath, err, text)
	}
	return v
}

type dict = map[string]any

// keys are the sorted keys of an object below the path of keys.
func keys(v dict, path ...string) []string {
	for _, p := range path {
		v, _ = v[p].(dict)
	}
	var all []string
	for k := range v {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func TestShapes_FitTheClientsVersion(t *testing.T) {
	n := newNode(t)
	n.start(t, "web", false, "sleep")
	c := get[dict](t, n, "GET /v1.51/containers/web/json?size=1", "")
	want := strings.Fields("Bridge EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen HairpinMode IPAddress IPPrefixLen IPv6Gateway " +
		"LinkLocalIPv6Address LinkLocalIPv6PrefixLen MacAddress Networks Ports SandboxID SandboxKey SecondaryIPAddresses SecondaryIPv6Addresses")
	if diff := cmp.Diff(want, keys(c, "NetworkSettings")); diff != "" {
		t.Error("network settings (-want +got)", diff)
	}
	settings := c["NetworkSettings"].(dict)
	if settings["IPAddress"] != "172.17.0.2" || settings["IPPrefixLen"] != 16.0 || settings["Gateway"] != "172.17.0.1" {
		t.Error("got", settings)
	}
	if got := keys(c, "GraphDriver"); !slices.Equal(got, []string{"Data", "Name"}) {
		t.Error("graph driver: got", got)
	}
	if c["Mounts"] == nil || c["Args"] == nil {
		t.Error("null where clients expect a list:", c)
	}
	for _, row := range get[[]dict](t, n, "GET /v1.51/containers/json", "") {
		if _, ok := row["Health"]; ok {
			t.Error("health in a list below 1.52")
		}
	}
	for version, virtual := range map[string]bool{"1.43": true, "1.44": false, "1.51": false} {
		for _, row := range get[[]dict](t, n, "GET /v"+version+"/images/json", "") {
			if _, ok := row["VirtualSize"]; ok != virtual || row["RepoTags"] == nil || row["Containers"] != -1.0 || row["SharedSize"] != -1.0 {
				t.Error(version, "got", row)
			}
		}
		i := get[dict](t, n, "GET /v"+version+"/images/base/json", "")
		if _, ok := i["VirtualSize"]; ok != virtual || keys(i, "GraphDriver") == nil || i["DockerVersion"] != "" || i["Parent"] != "" {
			t.Error(version, "got", i)
		}
	}
}

func TestDiskUsage_HasOneOldShape(t *testing.T) {
	n := newNode(t)
	if _, err := n.volumes.Create(t.Context(), volume.CreateRequest{Name: "used"}); err != nil {
		t.Fatal(err)
	}
	n.start(t, "web", false, "sleep")
	tests := []struct {
		query string
		want  []string // keys that are not null
	}{
		{"/v1.51/system/df", []string{"BuildCache", "Containers", "Images", "LayersSize", "Volumes"}},
		{"/v1.44/system/df?type=volume&type=container", []string{"Containers", "LayersSize", "Volumes"}},
		{"/v1.41/system/df?type=image", []string{"BuildCache", "BuilderSize", "Containers", "Images", "LayersSize", "Volumes"}},
	}
	for _, tt := range tests {
		df := get[dict](t, n, "GET "+tt.query, "")
		for k, v := range df {
			if v == nil {
				delete(df, k)
			}
		}
		if diff := cmp.Diff(tt.want, keys(df)); diff != "" {
			t.Error(tt.query, diff)
		}
	}
	df := get[struct {
		LayersSize int64
		Images     []image.Summary
		Volumes    []volume.Volume
		Containers []container.Summary
	}](t, n, "GET /system/df", "")
	if df.LayersSize != 2000 || df.Images[0].Containers != 1 || df.Images[1].Containers != 0 || df.Containers[0].SizeRootFs != 1200 ||
		*df.Volumes[0].UsageData != (volume.UsageData{RefCount: 1, Size: 77}) {
		t.Errorf("got %+v", df)
	}
	if status, text := n.call(t, "GET /system/df?type=pods", ""); status != 400 {
		t.Error("got", status, text)
	}
}

func TestContainerList_Filters(t *testing.T) {
	n := newNode(t)
	one := n.start(t, "one", false, "sleep")
	one.req.Labels = map[string]string{"a": "b", "com.docker.swarm.task.id": "t1"}
	<-n.start(t, "two", false, "exit").ended
	three := n.start(t, "three", false, "sleep")
	three.image = "sha256:other"
	one.created = one.created.Add(-10e9)
	three.created = three.created.Add(10e9)
	tests := []struct {
		query, want string
	}{
		{"", "three one"},
		{"all=1", "three two one"},
		{"limit=2", "three two"},
		{`filters={"status":["exited"]}`, "two"},
		{`filters={"exited":{"7":true}}`, "two"},
		{`filters={"exited":["0"]}`, ""},
		{`filters={"name":["^t"]}`, "three"},
		{`filters={"name":["/one"]}`, "one"},
		{`filters={"name":["(["]}`, ""},
		{`filters={"id":["` + one.id[:12] + `"]}`, "one"},
		{`filters={"label":["a=b"]}`, "one"},
		{`filters={"label":["a=c"]}`, ""},
		{`filters={"is-task":["true"]}`, "one"},
		{`filters={"is-task":["false"]}`, "three"},
		{`all=true&filters={"before":["two"]}`, "one"},
		{`all=true&filters={"since":["two"]}`, "three"},
		{`filters={"ancestor":["base"]}`, "one"},
		{`filters={"ancestor":["nope"]}`, ""},
		{`filters={"health":["healthy"]}`, "three one"},
		{`filters={"health":["none"]}`, ""},
		{`filters={"network":["bridge"]}`, "three one"},
		{`filters={"network":["` + bridgeID + `"]}`, "three one"},
		{`filters={"network":["host"]}`, ""},
		{`filters={"volume":["used"]}`, "three one"},
		{`filters={"volume":["/data"]}`, "three one"},
		{`filters={"volume":["/"]}`, ""},
		{`filters={"publish":["80"]}`, "three one"},
		{`filters={"publish":["79-81/tcp"]}`, "three one"},
		{`filters={"expose":["80/udp"]}`, ""},
	}
	for _, tt := range tests {
		query := strings.NewReplacer(`"`, "%22", "^", "%5E").Replace(tt.query)
		var names []string
		for _, c := range get[[]container.Summary](t, n, "GET /containers/json?"+query, "") {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.query, got, tt.want)
		}
	}
	for _, bad := range []string{
		`{"status":["dancing"]}`, `{"exited":["x"]}`, `{"health":["x"]}`, `{"publish":["90-80"]}`, `{"publish":["http"]}`,
		`{"is-task":["maybe"]}`, `{"color":["red"]}`, `{`, `[]`,
	} {
		if status, text := n.call(t, "GET /containers/json?filters="+url.QueryEscape(bad), ""); status != 400 {
			t.Errorf("%s: got %d %s", bad, status, text)
		}
	}
	if status, text := n.call(t, `GET /containers/json?filters={%22before%22:[%22nope%22]}`, ""); status != 404 {
		t.Error("got", status, text)
	}
}

func TestImageList_Filters(t *testing.T) {
	n := newNode(t)
	tests := []struct{ query, want string }{
		{"", "cd ab"},
		{`filters={"dangling":["true"]}`, "cd"},
		{`filters={"dangling":["0"]}`, "ab"},
		{`filters={"label":["a"]}`, "ab"},
		{`filters={"label!":["a=b"]}`, "cd"},
		{`filters={"reference":["ba*"]}`, "ab"},
		{`filters={"reference":["base:l*"]}`, "ab"},
		{`filters={"reference":["x"]}`, ""},
		{`filters={"since":["base"]}`, "cd"},
		{`filters={"before":["base"]}`, ""},
		{`filters={"until":["2026-11-20T21:02:50Z"]}`, "ab"},
	}
	for _, tt := range tests {
		var ids []string
		for _, i := range get[[]image.Summary](t, n, "GET /images/json?"+strings.ReplaceAll(tt.query, `"`, "%22"), "") {
			ids = append(ids, i.ID[7:9])
		}
		if got := strings.Join(ids, " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.query, got, tt.want)
		}
	}
	get[dict](t, n, `POST /images/prune?filters={%22dangling%22:[%22false%22],%22label!%22:[%22a%22]}`, "")
	if diff := cmp.Diff(map[string]bool{"ab": true, "cd": false}, n.images.keeps); diff != "" {
		t.Error("prune keeps", diff)
	}
}

func TestImages_ReferencesAndCredentials(t *testing.T) {
	const secret = `{"username":"u?>","password":"p~~"}`
	n := newNode(t)
	tests := []struct {
		path, auth string
		status     int
		asked      string
		user       string
	}{
		{"/images/create?fromImage=nginx&tag=1", "", 200, "docker.io/library/nginx:1 ", ""},
		{"/images/create?fromImage=docker.io/library/nginx&tag=sha256:" + strings.Repeat("0", 64), "e30=", 200, "docker.io/library/nginx@sha256:" + strings.Repeat("0", 64) + " ", ""},
		{"/images/create?fromImage=reg.example:5000/a/b:3&platform=linux/arm64", "e30", 200, "reg.example:5000/a/b:3 linux/arm64", ""},
		{"/images/create?fromImage=nginx:", base64.URLEncoding.EncodeToString([]byte(secret)), 200, "docker.io/library/nginx:latest ", "u?>"},
		{"/images/create?fromImage=nginx", base64.StdEncoding.EncodeToString([]byte(secret)), 200, "docker.io/library/nginx:latest ", "u?>"},
		{"/images/create?fromImage=nginx", base64.RawURLEncoding.EncodeToString([]byte(secret)), 200, "docker.io/library/nginx:latest ", "u?>"},
		{"/images/reg.example:5000/db/push?tag=1", "e30=", 200, "reg.example:5000/db:1", ""},
		{"/images/base/tag?repo=docker.io/library/foo&tag=1", "", 201, "base docker.io/library/foo:1", ""},
		{"/images/create?fromImage=nginx", "%%%", 400, "", ""},
		{"/images/create?fromImage=nginx", "WzFd", 400, "", ""},
		{"/images/create?fromImage=UPPER", "", 400, "", ""},
		{"/images/create?fromImage=", "", 400, "", ""},
		{"/images/create?fromImage=a&platform=a/b/c/d", "", 400, "", ""},
		{"/images/create?fromSrc=-&repo=x", "", 501, "", ""},
		{"/images/create?fromImage=denied", "", 404, "docker.io/library/denied:latest ", ""},
		{"/images/nope/tag?repo=x", "", 404, "nope docker.io/library/x:latest", ""},
		{"/images/a/b/c", "", 404, "", ""},
		{"/images/push", "", 404, "", ""},
	}
	for _, tt := range tests {
		n.images.asked, n.images.auth = "", nil
		status, text := n.call(t, "POST "+tt.path, "", registry.AuthHeader, tt.auth)
		user := ""
		if n.images.auth != nil {
			user = n.images.auth.Username
		}
		if status != tt.status || n.images.asked != tt.asked || user != tt.user {
			t.Errorf("%s: got %d %q %q %s, want %d %q %q", tt.path, status, n.images.asked, user, text, tt.status, tt.asked, tt.user)
		}
	}
	if status, text := n.call(t, "GET /images/reg.example:5000/a/b:1/json", ""); status != 404 || !strings.Contains(text, "No such image: reg.example:5000/a/b:1") {
		t.Error("got", status, text)
	}
	if status, text := n.call(t, "POST /images/create?fromImage=broken", ""); status != 200 ||
		!strings.HasSuffix(text, `{"errorDetail":{"message":"connection reset"},"error":"connection reset"}`) {
		t.Error("got", status, text)
	}
}

func TestCreate_KeepsTheHostForAdmins(t *testing.T) {
	n := newNode(t)
	n.role = admin.Operator
	for body, want := range map[string]int{
		`{"Image":"base"}`: 201,
		`{"Image":"base","HostConfig":{"Binds":["data:/data"],"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`:                                            201,
		`{"Image":"base","HostConfig":{"Privileged":true}}`:                                                                                                 403,
		`{"Image":"base","HostConfig":{"Binds":["/:/host"]}}`:                                                                                               403,
		`{"Image":"base","HostConfig":{"Mounts":[{"Type":"bind","Source":"/","Target":"/host"}]}}`:                                                          403,
		`{"Image":"base","HostConfig":{"Mounts":[{"Type":"volume","Target":"/v","VolumeOptions":{"DriverConfig":{"Options":{"device":"/","o":"bind"}}}}]}}`: 403,
		`{"Image":"base","HostConfig":{"PidMode":"host"}}`:                                                                                                  403,
		`{"Image":"base","HostConfig":{"NetworkMode":"host"}}`:                                                                                              403,
		`{"Image":"base","HostConfig":{"CapAdd":["SYS_ADMIN"]}}`:                                                                                            403,
		`{"Image":"base","HostConfig":{"SecurityOpt":["seccomp=unconfined"]}}`:                                                                              403,
		`{"Image":"base","HostConfig":{"Devices":[{"PathOnHost":"/dev/sda"}]}}`:                                                                             403,
		`{"Image":"base","HostConfig":{"MaskedPaths":[]}}`:                                                                                                  403,
		`{"Image":"base","HostConfig":{"VolumesFrom":["x"]}}`:                                                                                               403,
		`{"Image":"base","HostConfig":{"CgroupParent":"/"}}`:                                                                                                403,
		`{"HostConfig":{"Privileged":false}}`:                                                                                                               400,
		`{}`:                                                                                                                                                400,
	} {
		if status, text := n.call(t, "POST /containers/create", body); status != want {
			t.Errorf("%s: got %d %s, want %d", body, status, text, want)
		}
	}
	if status, _ := n.call(t, "POST /volumes/create", `{"Name":"v","DriverOpts":{"device":"/","o":"bind","type":"none"}}`); status != 403 {
		t.Error("volume with options: got", status)
	}
}

func TestCreate_RefusesAnImageOfAnotherPlatform(t *testing.T) {
	n := newNode(t)
	for query, want := range map[string]int{
		"platform=linux/amd64": 201, "platform=linux": 201, "platform=linux/arm64": 404, "platform=a/b/c/d": 400, "": 201,
	} {
		if status, text := n.call(t, "POST /containers/create?"+query, `{"Image":"base"}`); status != want {
			t.Errorf("%s: got %d %s, want %d", query, status, text, want)
		}
	}
}

func TestNetworks_AreFoundAndRefused(t *testing.T) {
	n := newNode(t)
	tests := []struct {
		request, body string
		status        int
		part          string
	}{
		{"GET /networks/bridge", "", 200, `"Containers":{}`},
		{"GET /networks/7395?scope=local", "", 200, `"Name":"bridge"`},
		{"GET /networks/7395?scope=swarm", "", 200, `"Name":"bridge"`},
		{"GET /networks/7395?scope=global", "", 404, "network 7395 not found"},
		{"GET /networks/576", "", 400, "network 576 is ambiguous (2 matches found)"},
		{`GET /networks?filters={%22type%22:[%22custom%22]}`, "", 200, `[]`},
		{`GET /networks?filters={%22type%22:[%22odd%22]}`, "", 400, "invalid filter"},
		{"POST /networks/create", `{"Name":"ov","Driver":"overlay"}`, 403, "This node is not a swarm manager."},
		{"POST /networks/create", `{"Name":"host"}`, 403, "host is a pre-defined network"},
		{"POST /networks/create", `{"Name":"x","Driver":"nodrv"}`, 404, `plugin \"nodrv\" not found`},
		{"POST /networks/create", `{}`, 400, "network name"},
		{"POST /networks/bridge/connect", `{"Container":"web"}`, 501, "not supported"},
		{"POST /networks/nope/disconnect", `{"Container":"web"}`, 404, "not found"},
		{"DELETE /networks/none", "", 403, "none is a pre-defined network and cannot be removed"},
		{"POST /networks/prune", "", 200, `{"NetworksDeleted":null}`},
		{"POST /build/prune?filters=&all=1", "", 200, `"SpaceReclaimed":0`},
		{"HEAD /containers/x/archive?path=/", "", 501, ""},
	}
	for _, tt := range tests {
		status, text := n.call(t, tt.request, tt.body)
		if status != tt.status || !strings.Contains(text, tt.part) {
			t.Errorf("%s: got %d %s, want %d %s", tt.request, status, text, tt.status, tt.part)
		}
	}
}
