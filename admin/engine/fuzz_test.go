package engine_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// bodies fuzzes what a route is posted. Whatever it is, the reply is JSON and
// its status says that the client was wrong, or what is not built, or success.
func bodies(f *testing.F, path string, inSwarm bool, seeds ...string) {
	f.Helper()
	for _, seed := range append(seeds, "", "null", "[]", `{"Name":"a","name":"b"}`, "{}{}", `{"Name":1}`, strings.Repeat(`{"a":`, 100)) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		m := offline(t)
		if inSwarm {
			m.initialise(t)
		}
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		m.handler().ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("status %d: reply %q is not JSON", w.Code, w.Body)
		}
	})
}

func FuzzServiceCreate(f *testing.F) {
	bodies(f, "/v1.51/services/create", true,
		`{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Args":["top"]}}}`,
		`{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Configs":[null]}}}`,
		`{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Secrets":[{"File":{"Name":"x"}},null]}}}`,
		`{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Ulimits":[null]},"Placement":{"Preferences":[{"Spread":null}]},"Networks":[{}]}}`,
		`{"Name":"web","Labels":{"a":"b"},"TaskTemplate":{"ContainerSpec":{"Image":"a:b@c","Mounts":[{"Type":"bind","Target":"/x"}],"Secrets":[null],"Configs":[{}]},"Networks":[{"Target":"host"}],"Placement":{"Constraints":["node.role==manager"],"Preferences":[{}]}},"Mode":{"Global":{}},"UpdateConfig":{"Parallelism":1},"EndpointSpec":{"Mode":"vip","Ports":[{"TargetPort":80,"PublishedPort":8080}]}}`)
}

func FuzzNetworkCreate(f *testing.F) {
	bodies(f, "/v1.51/networks/create", true,
		`{"Name":"n","Driver":"overlay","Scope":"swarm","Attachable":true,"Options":{"encrypted":"","com.docker.network.driver.mtu":"1400","com.docker.network.driver.overlay.vxlanid_list":"5000"}}`,
		`{"Name":"n","Driver":"overlay","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"10.9.0.0/24","IPRange":"10.9.0.128/25","Gateway":"10.9.0.1","AuxiliaryAddresses":{"a":"10.9.0.9"}},{"Subnet":"fd00::/64"}]}}`,
		`{"Name":"n","Driver":"overlay","IPAM":{"Config":[{},{"Subnet":"::ffff:10.0.0.0/120"},{"Subnet":"255.255.255.252/30","Gateway":"255.255.255.255"}]},"ConfigFrom":{}}`)
}

func FuzzSecretCreate(f *testing.F) {
	bodies(f, "/v1.51/secrets/create", true, `{"Name":"s","Data":"aGk=","Labels":{"a":"b"}}`, `{"Name":"s","Data":"aGk=","Templating":{"Name":"golang"}}`)
}

func FuzzSwarmInit(f *testing.F) {
	bodies(f, "/v1.51/swarm/init", false, `{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"192.168.78.1","DefaultAddrPool":["10.20.0.0/16"],"SubnetSize":24,"Spec":{"Orchestration":{"TaskHistoryRetentionLimit":3},"CAConfig":{"NodeCertExpiry":3600000000000}}}`)
}
