package engine_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/registry"
)

// serve answers a request without a connection.
func (n *node) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	n.handler.ServeHTTP(w, r)
	return w
}

// checkReply fails for a reply that no client should ever get: the server's
// own fault, or an error without its text.
func checkReply(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code == http.StatusInternalServerError {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	var e struct{ Message string }
	if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Message == "") {
		t.Fatalf("got %d with the body %q", w.Code, w.Body)
	}
}

// FuzzQuery sends odd queries to the routes that read the most of them.
func FuzzQuery(f *testing.F) {
	n := newNode(f)
	<-n.start(f, "done", false, "both").ended
	paths := []string{
		"GET /containers/done/logs", "GET /containers/json", "GET /images/json", "GET /networks", "GET /volumes",
		"GET /system/df", "POST /containers/done/resize", "GET /images/get", "GET /containers/done/json",
		"POST /containers/prune", "POST /volumes/prune", "POST /images/create", "POST /images/base/tag",
	}
	for i := range paths {
		f.Add(uint8(i), "stdout=1&stderr=true&since=1795208275.000000001&until=2026-11-20T21:02:47Z&tail=all&timestamps=1&details=1&h=1&w=2")
		f.Add(uint8(i), `filters={"label":{"a=b":true},"until":["1h"],"name":["["]}&limit=-1&names=base&repo=x&tag=y&fromImage=z&platform=linux/amd64`)
		f.Add(uint8(i), `filters={"publish":["1-2/tcp"],"before":["done"],"reference":["a[b"],"dangling":["x"]}&type=image&limit=99999999999999999999`)
	}
	f.Fuzz(func(t *testing.T, i uint8, query string) {
		method, path, _ := strings.Cut(paths[int(i)%len(paths)], " ")
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.URL.RawQuery = query
		checkReply(t, n.serve(r))
	})
}

// FuzzRegistryAuth sends odd credentials with a pull.
func FuzzRegistryAuth(f *testing.F) {
	n := newNode(f)
	for _, seed := range []string{
		"", "e30=", "e30", "bnVsbA==", "eyJ1c2VybmFtZSI6InU_PiIsInBhc3N3b3JkIjoicH5-In0=", "eyJ1c2VybmFtZSI6InU/PiJ9", "W10", "=", "\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/images/create?fromImage=nginx", nil)
		r.Header.Set(registry.AuthHeader, header)
		w := n.serve(r)
		checkReply(t, w)
		if w.Code != 200 && strings.Contains(w.Body.String(), header) && len(header) > 32 {
			t.Errorf("the reply repeats the credentials: %s", w.Body)
		}
	})
}

// FuzzBody posts odd bodies to the routes that decode them.
func FuzzBody(f *testing.F) {
	n := newNode(f)
	n.start(f, "web", false, "sleep")
	paths := []string{"/containers/create", "/containers/web/exec", "/volumes/create", "/networks/create", "/exec/nope/start"}
	for i := range paths {
		for _, seed := range []string{
			`{"Image":"base","Cmd":["exit"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"MemorySwappiness":-1,"PidsLimit":0,"ConsoleSize":[0,0],"Dns":["1.1.1.1"]},"NetworkingConfig":{"EndpointsConfig":{"default":{"MacAddress":""}}}}`,
			`{"Cmd":["echo","x"],"DetachKeys":"ctrl-p,ctrl-q","ConsoleSize":[1,2],"Tty":true}`,
			`{"Name":"v","Driver":"overlay","Labels":{"a":"b"},"IPAM":null,"Options":null}`,
			`{"HostConfig":null}`, `null`, `[]`, `{"Image":1}`, `{`, `{} {}`,
		} {
			f.Add(uint8(i), seed)
		}
	}
	f.Fuzz(func(t *testing.T, i uint8, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, paths[int(i)%len(paths)], strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		checkReply(t, n.serve(r))
	})
}

// FuzzPath asks for images and other objects by odd names.
func FuzzPath(f *testing.F) {
	n := newNode(f)
	for _, seed := range []string{
		"/images/reg.example:5000/a/b:1/json", "/images//json", "/images/json/json", "/v1.44/images/a/../b/json", "/containers/%2F/json",
		"/containers/a%00b/logs?stdout=1", "/networks/", "/volumes/..", "/v1.99/containers/json", "/v1.24/images/json",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI("/" + strings.TrimPrefix(path, "/"))
		if err != nil || !strings.Contains(u.Path, "s/") || strings.Contains(u.Path, "events") || strings.Contains(u.Path, "stats") {
			t.Skip() // not the node's, or endless
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.URL = u
		if w := n.serve(r); w.Code == http.StatusInternalServerError {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
	})
}
