package admin_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skep/admin"
)

// plainSealer marks what it sealed, and seals nothing.
type plainSealer struct{}

func (plainSealer) Seal(domain string, plain []byte) []byte {
	return append([]byte(domain+"|"), plain...)
}

func (plainSealer) Open(domain string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte(domain+"|"))
	if !ok {
		return nil, errors.New("not sealed for " + domain)
	}
	return plain, nil
}

func (plainSealer) Current([]byte) bool { return true }

func logger(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func openAudit(t *testing.T) (a *admin.Audit, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit")
	a, err := admin.OpenAudit(path, plainSealer{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, path
}

// records reads an audit without what differs from run to run.
func records(t *testing.T, path string) (out []admin.Record) {
	t.Helper()
	err := admin.ReadAudit(path, plainSealer{}, func(r admin.Record) error {
		out = append(out, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func respond(status int, text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	})
}

func newMux(t *testing.T, audit *admin.Audit, routes ...admin.Route) *admin.Mux {
	t.Helper()
	m, err := admin.NewMux(admin.MuxConfig{Routes: routes, Audit: audit, Logger: logger(t), Hosts: []string{"mgr1"}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewMux_RefusesRowsThatAreNotWhole(t *testing.T) {
	audit, _ := openAudit(t)
	ok := http.NotFoundHandler()
	for name, routes := range map[string][]admin.Route{
		"no role":          {{Pattern: "GET /x", Handler: ok}},
		"unknown role":     {{Pattern: "GET /x", Role: admin.Admin + 1, Handler: ok}},
		"no method":        {{Pattern: "/x", Role: admin.Viewer, Handler: ok}},
		"no handler":       {{Pattern: "GET /x", Role: admin.Viewer}},
		"bad pattern":      {{Pattern: "GET /{", Role: admin.Viewer, Handler: ok}},
		"twice":            {{Pattern: "GET /x", Role: admin.Viewer, Handler: ok}, {Pattern: "GET /x", Role: admin.Admin, Handler: ok}},
		"viewers may post": {{Pattern: "POST /x", Role: admin.Viewer, Handler: ok}},
	} {
		if _, err := admin.NewMux(admin.MuxConfig{Routes: routes, Audit: audit, Logger: logger(t)}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := admin.NewMux(admin.MuxConfig{}); err == nil {
		t.Error("accepted a mux without an audit")
	}
}

func TestMux_DecidesByRoleAndRecordsEveryMutation(t *testing.T) {
	routes := []admin.Route{
		{Pattern: "GET /info", Role: admin.Viewer, Handler: respond(200, "info")},
		{Pattern: "GET /swarm", Role: admin.Admin, Handler: respond(200, "tokens")},
		{Pattern: "POST /services/{id}/update", Role: admin.Operator, Mutates: true, Handler: respond(202, "")},
		{Pattern: "DELETE /images/{name...}", Role: admin.Operator, Mutates: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})},
		{Pattern: "POST /services/create", Role: admin.Operator, Mutates: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			admin.NameObject(r.Context(), "new")
			w.WriteHeader(http.StatusCreated)
			admin.NameObject(r.Context(), "too late")
		})},
	}
	line := func(role, pattern, object, query, decision string, status int) admin.Record {
		return admin.Record{
			Principal: "p", Transport: "unix", Detail: "d", Role: role,
			Pattern: pattern, Object: object, Query: query, Decision: decision, Status: status,
		}
	}
	tests := []struct {
		name, method, url string
		role              admin.Role
		status            int
		body              string
		want              []admin.Record
	}{
		{"viewer reads", "GET", "/info", admin.Viewer, 200, "info", nil},
		{"head is get", "HEAD", "/info", admin.Viewer, 200, "", nil},
		{"nobody reads nothing", "GET", "/info", admin.Nobody, 403, `{"message":"access denied: p is nobody and GET /info is for viewer"}` + "\n", nil},
		{"operator sees no tokens", "GET", "/swarm", admin.Operator, 403, `{"message":"access denied: p is operator and GET /swarm is for admin"}` + "\n", nil},
		{"admin sees them", "GET", "/swarm", admin.Admin, 200, "tokens", nil},
		{"operator changes", "POST", "/services/web/update?version=3", admin.Operator, 202, "", []admin.Record{line("operator", "POST /services/{id}/update", "web", "version=3", "allow", 202)}},
		{
			"viewer does not", "POST", "/services/web/update", admin.Viewer, 403,
			`{"message":"access denied: p is viewer and POST /services/{id}/update is for operator"}` + "\n",
			[]admin.Record{line("viewer", "POST /services/{id}/update", "web", "", "deny", 403)},
		},
		{"silence is 200", "DELETE", "/images/a/b:c", admin.Admin, 200, "", []admin.Record{line("admin", "DELETE /images/{name...}", "a/b:c", "", "allow", 200)}},
		{"named object", "POST", "/services/create", admin.Admin, 201, "", []admin.Record{line("admin", "POST /services/create", "new", "", "allow", 201)}},
		{"unknown path", "GET", "/nope", admin.Admin, 404, `{"message":"page not found"}` + "\n", nil},
		{"unknown method", "PUT", "/info", admin.Admin, 404, `{"message":"page not found"}` + "\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			audit, path := openAudit(t)
			r := httptest.NewRequestWithContext(
				admin.WithPrincipal(t.Context(), admin.Principal{Name: "p", Transport: "unix", Detail: "d", Role: tt.role}),
				tt.method, tt.url, nil)
			w := httptest.NewRecorder()
			newMux(t, audit, routes...).ServeHTTP(w, r)
			if w.Code != tt.status || w.Body.String() != tt.body && tt.method != "HEAD" {
				t.Errorf("got %d %q", w.Code, w.Body)
			}
			ignore := cmpopts.IgnoreFields(admin.Record{}, "Time", "Request", "Sequence")
			if diff := cmp.Diff(tt.want, records(t, path), ignore); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMux_RecordsOneLineAlsoWhenTheHandlerPanics(t *testing.T) {
	audit, path := openAudit(t)
	m := newMux(t, audit, admin.Route{
		Pattern: "POST /x", Role: admin.Admin, Mutates: true,
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") }),
	})
	func() {
		defer func() {
			if p := recover(); p != "oh" {
				t.Errorf("recovered %v", p)
			}
		}()
		ctx := admin.WithPrincipal(t.Context(), admin.Principal{Role: admin.Admin})
		m.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/x", nil))
	}()
	if got := records(t, path); len(got) != 1 || got[0].Status != 500 {
		t.Errorf("got %+v", got)
	}
}

func TestMux_DoesNotAcknowledgeWhatItCannotRecord(t *testing.T) {
	audit, _ := openAudit(t)
	m := newMux(t, audit, admin.Route{Pattern: "POST /x", Role: admin.Admin, Mutates: true, Handler: respond(200, "done")})
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := admin.WithPrincipal(t.Context(), admin.Principal{Role: admin.Admin})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", "/x", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), "audit") || strings.Contains(w.Body.String(), "done") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

func TestMux_CapsBodiesExceptStreams(t *testing.T) {
	audit, _ := openAudit(t)
	count := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
		if n > admin.MaxBody {
			w.WriteHeader(http.StatusAccepted)
		}
	})
	m := newMux(
		t, audit,
		admin.Route{Pattern: "POST /json", Role: admin.Admin, Handler: count},
		admin.Route{Pattern: "POST /tar", Role: admin.Admin, Stream: true, Handler: count},
	)
	ctx := admin.WithPrincipal(t.Context(), admin.Principal{Role: admin.Admin})
	for _, tt := range []struct {
		url    string
		size   int
		status int
	}{
		{"/json", admin.MaxBody, 200},
		{"/json", admin.MaxBody + 1, 413},
		{"/tar", admin.MaxBody + 1, 202},
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", tt.url, bytes.NewReader(make([]byte, tt.size))))
		if w.Code != tt.status {
			t.Errorf("%s %d: got %d", tt.url, tt.size, w.Code)
		}
	}
}

func TestMux_RefusesForeignPagesOverTCP(t *testing.T) {
	audit, _ := openAudit(t)
	m := newMux(t, audit, admin.Route{Pattern: "GET /info", Role: admin.Viewer, Handler: respond(200, "")})
	for _, tt := range []struct {
		transport, host, origin string
		status                  int
	}{
		{"tcp", "10.0.0.1:2376", "", 200},
		{"tcp", "[::1]:2376", "", 200},
		{"tcp", "MGR1:2376", "https://MGR1:2376", 200},
		{"tcp", "localhost", "", 200},
		{"tcp", "evil.example:2376", "", 403},
		{"tcp", "", "", 403},
		{"tcp", "mgr1", "https://evil.example", 403},
		{"tcp", "mgr1", "http://mgr1", 403},
		{"tcp", "mgr1", "null", 403},
		{"unix", "api.moby.localhost", "https://evil.example", 200},
	} {
		ctx := admin.WithPrincipal(t.Context(), admin.Principal{Transport: tt.transport, Role: admin.Viewer})
		r := httptest.NewRequestWithContext(ctx, "GET", "/info", nil)
		r.Host = tt.host
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		w := httptest.NewRecorder()
		if m.ServeHTTP(w, r); w.Code != tt.status {
			t.Errorf("%+v: got %d", tt, w.Code)
		}
	}
}

func TestMux_RecordsHijackedAndFlushedReplies(t *testing.T) {
	audit, path := openAudit(t)
	m := newMux(
		t, audit,
		admin.Route{Pattern: "POST /attach", Role: admin.Admin, Mutates: true, Stream: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello")
			_ = c.Close()
		})},
		admin.Route{Pattern: "POST /pull", Role: admin.Admin, Mutates: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			if _, ok := w.(http.Flusher); !ok {
				t.Error("no flusher")
			}
		})},
	)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), admin.Principal{Role: admin.Admin})))
	}))
	defer srv.Close()
	c, err := srv.Client().Post(srv.URL+"/pull", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Body.Close()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/attach", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(bufio.NewReader(res.Body))
	if err != nil || string(text) != "hello" {
		t.Errorf("got %q, %v", text, err)
	}
	got := records(t, path)
	if len(got) != 2 || got[0].Status != 200 || got[1].Status != 101 {
		t.Errorf("got %+v", got)
	}
}

func TestHealth_SaysWhatIsMissing(t *testing.T) {
	audit, _ := openAudit(t)
	var missing error
	m := newMux(t, audit, admin.Health(func() error { return missing }))
	ctx := admin.WithPrincipal(t.Context(), admin.Principal{Role: admin.Viewer})
	for _, tt := range []struct {
		err    error
		status int
		body   string
	}{{nil, 200, "ready\n"}, {errors.New("no leader"), 503, `{"message":"no leader"}` + "\n"}} {
		missing = tt.err
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/skep/health", nil))
		if w.Code != tt.status || w.Body.String() != tt.body {
			t.Errorf("got %d %q", w.Code, w.Body)
		}
	}
}
