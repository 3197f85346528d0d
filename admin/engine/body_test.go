package engine_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestBody_IsReadInOneWayOnly(t *testing.T) {
	m := initialised(t)
	m.images.digests["x:latest"] = digest.FromString("x")
	deep := strings.Repeat(`{"A":`, 80) + "1" + strings.Repeat("}", 80)
	tests := []struct{ name, contentType, body, want string }{
		{"another type", "text/plain", `{}`, "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"a form", "application/x-www-form-urlencoded", `Name=x`, "unsupported Content-Type header (application/x-www-form-urlencoded): must be 'application/json'"},
		{"no type", "", `{}`, "unsupported Content-Type header (): must be 'application/json'"},
		{"nothing", "application/json", ``, "invalid JSON: got EOF while reading request body"},
		{"cut", "application/json", `{"Name":`, "invalid JSON: unexpected EOF"},
		{"two values", "application/json", `{} {}`, "unexpected content after JSON"},
		{"same key", "application/json", `{"Name":"a","Name":"a"}`, `invalid JSON: duplicate key "Name"`},
		{"same key in another spelling", "application/json", `{"Labels":{},"LABELS":{}}`, `invalid JSON: duplicate key "LABELS"`},
		{"same key by folding", "application/json", `{"TaskTemplate":{},"ta\u017fkTemplate":{}}`, `invalid JSON: duplicate key "taſkTemplate"`},
		{"same key below", "application/json", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","image":"b"}}}`, `invalid JSON: duplicate key "image"`},
		{"same key in a list", "application/json", `{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"bind","type":"volume"}]}}}`, `invalid JSON: duplicate key "type"`},
		{"same key of what is unknown", "application/json", `{"X":{"a":1,"a":2}}`, `invalid JSON: duplicate key "a"`},
		{"too deep", "application/json", `{"X":` + deep + `}`, "invalid JSON: nested deeper than 64"},
		{"too large", "application/json", `{"Name":"` + strings.Repeat("a", 5<<20) + `"}`, "request body larger than 4194304 bytes"},
		{"maps tell spellings apart", "application/json; charset=utf-8", `{"Name":"ok","Labels":{"a":"1","A":"2"},"New":{"of":"a newer client"},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://skep/services/create", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tt.contentType)
			if tt.name == "no type" {
				req.Header.Del("Content-Type")
			}
			if tt.body == "" {
				req.Body, req.ContentLength = http.NoBody, 0
			}
			res, err := m.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if res.StatusCode != http.StatusCreated {
					t.Errorf("%d %s", res.StatusCode, body)
				}
				return
			}
			if got := message(t, string(body)); res.StatusCode != http.StatusBadRequest || got != tt.want {
				t.Errorf("got %d %s, want %s", res.StatusCode, got, tt.want)
			}
		})
	}
	if l := m.service(t, "ok").Spec.Labels; l["a"] != "1" || l["A"] != "2" {
		t.Errorf("labels are %v", l)
	}
}

func TestRegistryAuth_ComesInManyForms(t *testing.T) {
	m := newManager(t)
	m.images.digests["x"] = digest.FromString("x")
	tests := []struct {
		header, user, refusal string
	}{
		{"", "", ""},
		{"e30=", "", ""},
		{"eyJ1c2VybmFtZSI6InUifQ==", "u", ""},
		{"eyJ1c2VybmFtZSI6InUifQ", "u", ""},
		{"eyJ1c2VybmFtZSI6IsO_w78ifQ", "ÿÿ", ""},
		{"eyJ1c2VybmFtZSI6IsO/w78ifQ==", "ÿÿ", ""},
		{"%%%", "", "invalid X-Registry-Auth header: illegal base64 data at input byte 0"},
		{"bm8=", "", "invalid X-Registry-Auth header: invalid JSON: invalid character 'o' in literal null (expecting 'u')"},
	}
	for _, tt := range tests {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://skep/distribution/x/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Registry-Auth", tt.header)
		res, err := m.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if tt.refusal != "" {
			if got := message(t, string(body)); res.StatusCode != http.StatusBadRequest || got != tt.refusal {
				t.Errorf("%s: %d %s", tt.header, res.StatusCode, got)
			}
			continue
		}
		user := ""
		if m.images.auth != nil {
			user = m.images.auth.Username
		}
		if res.StatusCode != http.StatusOK || user != tt.user {
			t.Errorf("%q: %d, user %q, want %q", tt.header, res.StatusCode, user, tt.user)
		}
	}
}
