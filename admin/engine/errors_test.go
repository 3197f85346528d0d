package engine_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

// TestErrors_AreDockers replays what was recorded of a Docker daemon: status
// and text of each refusal. The daemon's texts begin with the code of its
// inner protocol, ours do not.
func TestErrors_OutsideASwarmAreDockers(t *testing.T) {
	m := newManager(t)
	tests := []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/swarm/leave?force=1", "", 503, notPart},
		{"POST", "/swarm/leave", "", 503, notPart},
		{"GET", "/swarm", "", 503, notManager},
		{"GET", "/services", "", 503, notManager},
		{"GET", "/nodes", "", 503, notManager},
		{"GET", "/tasks", "", 503, notManager},
		{"GET", "/secrets", "", 503, notManager},
		{"GET", "/configs", "", 503, notManager},
		{"GET", "/swarm/unlockkey", "", 503, notManager},
		{"POST", "/services/create", `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, 503, notManager},
		{"POST", "/swarm/unlock", `{"UnlockKey":"x"}`, 503, notManager},
		{"POST", "/swarm/join", `{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":["192.168.78.99:2377"],"JoinToken":"bad"}`, 500, "invalid join token"},
		{"POST", "/swarm/join", `{}`, 400, "at least 1 RemoteAddr is required to join"},
		{"POST", "/swarm/init", `{"Spec":{"Name":"mine"}}`, 400, `swarm spec must be named "default"`},
		{"GET", "/nosuch", "", 404, "page not found"},
		{"PUT", "/services", "", 404, "page not found"},
		{"GET", "/v1.99/info", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"},
		{"GET", "/v1.52/info", "", 400, "client version 1.52 is too new. Maximum supported API version is 1.51"},
		{"GET", "/v1.23/info", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/v2.0/info", "", 400, "client version 2.0 is too new. Maximum supported API version is 1.51"},
		{"GET", "/vx/info", "", 404, "page not found"},
		{"GET", "/v1.44", "", 404, "page not found"},
	}
	for _, tt := range tests {
		status, header, body := m.call(t, tt.method, tt.path, tt.body)
		if text := message(t, body); status != tt.status || text != tt.text {
			t.Errorf("%s %s:\n got %d %s\nwant %d %s", tt.method, tt.path, status, text, tt.status, tt.text)
		}
		if got := header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s %s: content type %q", tt.method, tt.path, got)
		}
		if got := header.Get("Api-Version"); got != "1.51" {
			t.Errorf("%s %s: Api-Version %q", tt.method, tt.path, got)
		}
	}
}

func TestErrors_InASwarmAreDockers(t *testing.T) {
	m := initialised(t)
	var secret swarm.SecretCreateResponse
	m.ok(t, "POST", "/secrets/create", `{"Name":"s1","Data":"aGk="}`, &secret)
	var stored swarm.Secret
	m.ok(t, "GET", "/secrets/s1", "", &stored)
	container := fmt.Sprintf(`{"Image":"busybox","Args":["top"],"Secrets":[{"SecretID":%q,"SecretName":"s1","File":{"Name":"s1","UID":"0","GID":"0","Mode":292}}]}`, secret.ID)
	web := `{"Name":"web","TaskTemplate":{"ContainerSpec":` + container + `}}`
	var created swarm.ServiceCreateResponse
	m.ok(t, "POST", "/services/create", web, &created)
	var service swarm.Service
	m.ok(t, "GET", "/services/web", "", &service)
	m.ok(t, "POST", "/services/create", `{"Name":"port","EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8123}]},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	m.ok(t, "POST", "/services/create", `{"Name":"badbind","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Mounts":[{"Type":"bind","Source":"","Target":"/x"}]}}}`, nil)
	var node swarm.Node
	m.ok(t, "GET", "/nodes/node1", "", &node)
	big := strings.Repeat("QUFB", 200000)
	update := func(body string) (string, string) {
		return fmt.Sprintf("/services/%s/update?version=%d", created.ID, service.Version.Index), body
	}
	rename, renamed := update(`{"Name":"renamed","TaskTemplate":{"ContainerSpec":` + container + `}}`)
	remode, remoded := update(`{"Name":"web","TaskTemplate":{"ContainerSpec":` + container + `},"Mode":{"Global":{}}}`)
	nodeUpdate := fmt.Sprintf("/nodes/%s/update?version=%d", node.ID, node.Version.Index)
	memberText := "node " + node.ID + " is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
	image := func(rest string) string {
		return `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}` + rest + `}}`
	}
	tests := []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/swarm/init", `{}`, 503, alreadyPart},
		{"POST", "/swarm/join", `{"RemoteAddrs":["192.168.78.1:2377"],"JoinToken":"x"}`, 503, alreadyPart},
		{"POST", "/swarm/leave", "", 503, lastManager},
		{"POST", "/swarm/unlock", `{"UnlockKey":"x"}`, 409, "swarm is not locked"},
		{"POST", "/swarm/update?version=9999", `{"Name":"default"}`, 500, "update out of sequence"},
		{"POST", "/swarm/update?version=zz", `{"Name":"default"}`, 400, `invalid swarm version 'zz': strconv.ParseUint: parsing "zz": invalid syntax`},
		{"POST", "/swarm/update?version=1", `{"Name":"other"}`, 400, "modification of cluster name is not allowed"},
		{"POST", "/swarm/update?version=1", `{"Name":"default","CAConfig":{"NodeCertExpiry":1}}`, 400, "minimum certificate expiry time is: 1h0m0s"},
		{"POST", "/swarm/update?version=1", `{"Name":"default","CAConfig":{"SigningCAKey":"k"}}`, 400, "if a signing CA key is provided, the signing CA cert must also be provided"},
		{"POST", "/secrets/create", `{"Name":"s1","Data":"aGk="}`, 409, "secret s1 already exists"},
		{"POST", "/secrets/create", `{"Name":"","Data":"aGk="}`, 400, "name must be provided"},
		{"POST", "/secrets/create", `{"Name":"big","Data":"` + big + `"}`, 400, "secret data must be larger than 0 and less than 512000 bytes"},
		{"GET", "/secrets/nope", "", 404, "secret nope not found"},
		{"DELETE", "/secrets/nope", "", 404, "secret nope not found"},
		{"POST", "/secrets/" + secret.ID + "/update?version=1", `{"Name":"s1"}`, 500, "update out of sequence"},
		{"POST", fmt.Sprintf("/secrets/%s/update?version=%d", secret.ID, stored.Version.Index), `{"Name":"s1","Data":"Ym8="}`, 400, "only updates to Labels are allowed"},
		{"POST", "/secrets/" + secret.ID + "/update", `{"Name":"s1"}`, 400, `invalid secret version '': strconv.ParseUint: parsing "": invalid syntax`},
		{"GET", "/secrets?filters=%7B%22bad%22%3A%5B%22x%22%5D%7D", "", 400, "invalid filter 'bad'"},
		{"DELETE", "/secrets/s1", "", 400, "secret 's1' is in use by the following service: web"},
		{"POST", "/services/create", web, 409, "name conflicts with an existing object: service web already exists"},
		{"POST", "/services/create", `{"Name":"bad name!","TaskTemplate":{"ContainerSpec":` + container + `}}`, 400, "name must be valid as a DNS name component"},
		{"POST", "/services/create", `{"Name":"noimg","TaskTemplate":{"ContainerSpec":{}}}`, 400, "ContainerSpec: image reference must be provided"},
		// The daemon answers the next two with 500, which is none of ours to repeat.
		{"POST", "/services/create", image(`,"Placement":{"Constraints":["node.foo"]}`), 400, "constraint expected one operator from ==, !="},
		{"POST", "/services/create", image(`,"Networks":[{"Target":"nonet"}]`), 400, "network nonet not found"},
		{"POST", "/services/create", image(`,"Networks":[{"Target":"mine"}]`), 403, "The network mine cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver."},
		{"POST", "/services/create", `{"Name":"bads","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Secrets":[{"SecretID":"zzz","SecretName":"zzz","File":{"Name":"z","UID":"0","GID":"0","Mode":292}}]}}}`, 400, "secret not found: zzz"},
		{"POST", "/services/create", `"notjson"`, 400, "invalid JSON: json: cannot unmarshal string into Go value of type engine.serviceRequest"},
		{"POST", "/services/create", web + "{}", 400, "unexpected content after JSON"},
		{"POST", "/services/create", `{"Name":"a","name":"b"}`, 400, `invalid JSON: duplicate key "name"`},
		{"POST", "/services/create", `{"Name":"a","Labels":{"x":"1","x":"2"}}`, 400, `invalid JSON: duplicate key "x"`},
		{"POST", "/services/create", `{"Name":"job","Mode":{"ReplicatedJob":{}},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, 501, "jobs are not supported yet"},
		{"POST", "/services/create", `{"Name":"vol","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Mounts":[{"Type":"cluster","Source":"v","Target":"/v"}]}}}`, 501, "cluster volumes are not supported yet"},
		{"POST", "/services/create", `{"Name":"cred","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Privileges":{"CredentialSpec":{"File":"x"}}}}}`, 501, "credential specs are not supported yet"},
		{"POST", "/services/create", image(`,"Placement":{"Preferences":[{}]}`), 400, "malformed placement preference: only spread is known"},
		{"POST", "/services/create", `{"Name":"ul","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Ulimits":[null]}}}`, 400, "malformed ulimit"},
		{"POST", "/services/create", `{"Name":"two","Mode":{"Replicated":{},"Global":{}},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, 400, "must specify only one service mode"},
		{"POST", "/services/create", `{"Name":"p1","EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8123}]},"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, 400, "port '8123' is already in use by service 'port' (PORT) as an ingress port"},
		{"POST", "/services/" + created.ID + "/update?version=1", web, 500, "update out of sequence"},
		{"POST", "/services/" + created.ID + "/update", web, 400, `invalid service version '': strconv.ParseUint: parsing "": invalid syntax`},
		{"POST", "/services/web/update?version=1&rollback=previous", web, 400, "service " + created.ID + " does not have a previous spec"},
		{"POST", rename, renamed, 501, "renaming services is not supported"},
		{"POST", remode, remoded, 501, "service mode change is not allowed"},
		{"DELETE", "/services/nope", "", 404, "service nope not found"},
		{"GET", "/services/web/logs", "", 400, "must specify at least one of 'stdout' or 'stderr'"},
		{"GET", "/services?filters=%7Bbad", "", 400, "invalid filter"},
		{"DELETE", "/nodes/" + node.ID, "", 400, memberText},
		{"DELETE", "/nodes/" + node.ID + "?force=1", "", 400, memberText},
		{"POST", nodeUpdate, `{"Labels":{},"Role":"worker","Availability":"active"}`, 400, "attempting to demote the last manager of the swarm"},
		{"POST", nodeUpdate, `{"Role":"boss","Availability":"active"}`, 400, `invalid Role: "boss"`},
		{"POST", nodeUpdate, `{"Role":"manager","Availability":"gone"}`, 400, `invalid Availability: "gone"`},
		{"POST", "/nodes/" + node.ID + "/update?version=9999", `{"Role":"manager","Availability":"active"}`, 500, "update out of sequence"},
		{"GET", "/nodes/self", "", 404, "node self not found"},
		{"GET", "/tasks/nope", "", 404, "task nope not found"},
		{"GET", "/tasks?filters=%7B%22service%22%3A%5B%22nope%22%5D%7D", "", 404, "service nope not found"},
		// The daemon answers 500.
		{"GET", "/nodes?filters=%7B%22role%22%3A%5B%22boss%22%5D%7D", "", 400, "Invalid role filter: 'boss'"},
	}
	var port swarm.Service
	m.ok(t, "GET", "/services/port", "", &port)
	for _, tt := range tests {
		want := strings.ReplaceAll(tt.text, "PORT", port.ID)
		status, _, body := m.call(t, tt.method, tt.path, tt.body)
		if text := message(t, body); status != tt.status || text != want {
			t.Errorf("%s %s %.80s:\n got %d %s\nwant %d %s", tt.method, tt.path, tt.body, status, text, tt.status, want)
		}
	}
	if status, _, body := m.call(t, "POST", "/swarm/leave?force=1", ""); status != http.StatusOK || body != "" {
		t.Errorf("leave: %d %q", status, body)
	}
}
