package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/admin/engine"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store/object"
)

func TestUnlockKey_FollowsWhatTheSpecAsksFor(t *testing.T) {
	m := initialised(t)
	key := func() string {
		t.Helper()
		var answer swarm.UnlockKeyResponse
		m.ok(t, "GET", "/swarm/unlockkey", "", &answer)
		return answer.UnlockKey
	}
	var version uint64
	update := func(autolock, rotate bool) {
		t.Helper()
		var s swarm.Swarm
		m.ok(t, "GET", "/swarm", "", &s)
		m.ok(t, "POST", fmt.Sprintf("/swarm/update?version=%d&rotateManagerUnlockKey=%t", s.Version.Index, rotate),
			fmt.Sprintf(`{"Name":"default","EncryptionConfig":{"AutoLockManagers":%t}}`, autolock), nil)
	}
	changed := func() bool {
		old := version
		version = m.store.Snapshot().Cluster().KEKVersion
		return version > old
	}
	if key() != "" {
		t.Error("there is a key from the beginning")
	}
	update(false, true)
	if key() != "" || changed() {
		t.Error("rotated the key of a swarm that does not lock")
	}
	update(true, false)
	first := key()
	if _, err := identity.ParseUnlockKey(first); err != nil || !changed() {
		t.Errorf("got %q, %v", first, err)
	}
	update(true, false)
	if key() != first || changed() {
		t.Error("changed the key without being asked to")
	}
	update(true, true)
	if second := key(); second == first || second == "" || !changed() {
		t.Errorf("rotated to %q", second)
	}
	update(false, true)
	if key() != "" || !changed() {
		t.Error("kept the key of a swarm that does not lock")
	}
	update(true, false)
	if third := key(); third == first || third == "" || !changed() {
		t.Errorf("locked again with %q", third)
	}
	if _, _, body := m.call(t, "GET", "/swarm", ""); strings.Contains(body, key()) {
		t.Error("the swarm shows its key")
	}
}

// lockedNode is the API of a locked node, and what it was asked to do.
type lockedNode struct {
	handler http.Handler
	state   swarm.LocalNodeState
	tried   []seal.Secret
	answer  error
	left    bool
}

func newLocked(t *testing.T) *lockedNode {
	t.Helper()
	n := &lockedNode{state: swarm.LocalNodeStateLocked}
	l := engine.NewLocked(engine.LockedConfig{
		Host:  hostFacts{},
		State: func() swarm.LocalNodeState { return n.state },
		Unlock: func(_ context.Context, key seal.Secret) error {
			n.tried = append(n.tried, key)
			return n.answer
		},
		Leave: func(context.Context) error {
			n.left = true
			return nil
		},
		Version: "0.1",
		Logger:  slog.New(slog.DiscardHandler),
	})
	ring, err := seal.NewKeyring(seal.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	audit, err := admin.OpenAudit(filepath.Join(t.TempDir(), "audit"), ring)
	if err != nil {
		t.Fatal(err)
	}
	mux, err := admin.NewMux(admin.MuxConfig{Routes: l.Routes(), Other: l.Refuse, Audit: audit, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.handler = l.Versioned(mux)
	return n
}

func (n *lockedNode) do(role admin.Role, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	n.handler.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), admin.Principal{Name: "x", Transport: "unix", Role: role})))
	return w
}

const isLocked = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."

// Of all routes of an open node, a locked one has five.
func TestLocked_ServesFiveRoutes(t *testing.T) {
	n := newLocked(t)
	served := []string{"GET /_ping", "GET /version", "GET /info", "POST /swarm/unlock", "POST /swarm/leave"}
	var refused int
	for _, r := range newNode(t).routes {
		if slices.Contains(served, r.Pattern) {
			continue
		}
		method, path, _ := strings.Cut(strings.NewReplacer("{", "", "}", "", "...", "").Replace(r.Pattern), " ")
		w := n.do(admin.Admin, method, "/v1.51"+path, "{}")
		if w.Code != http.StatusServiceUnavailable || message(t, w.Body.String()) != isLocked {
			t.Errorf("%s: got %d %s", r.Pattern, w.Code, w.Body)
		}
		refused++
	}
	if refused < 80 {
		t.Errorf("only %d routes were tried", refused)
	}
	for _, path := range []string{"/nosuch", "/", "/metrics"} {
		if w := n.do(admin.Admin, "GET", path, ""); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: got %d", path, w.Code)
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		if w := n.do(admin.Viewer, method, "/_ping", ""); w.Code != http.StatusOK || w.Header().Get("Swarm") != "locked" {
			t.Errorf("%s /_ping: got %d %v", method, w.Code, w.Header())
		}
	}
	if w := n.do(admin.Viewer, "GET", "/v1.44/info", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"LocalNodeState":"locked"`) {
		t.Errorf("info: got %d %s", w.Code, w.Body)
	}
	if w := n.do(admin.Viewer, "GET", "/version", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"ApiVersion":"1.51"`) {
		t.Errorf("version: got %d %s", w.Code, w.Body)
	}
}

func TestLocked_UnlocksAndLeavesForAdminsOnly(t *testing.T) {
	n := newLocked(t)
	key := seal.NewSecret()
	body := fmt.Sprintf(`{"UnlockKey":%q}`, identity.FormatUnlockKey(key))
	expect := func(role admin.Role, path, body string, status int, text string) {
		t.Helper()
		w := n.do(role, "POST", path, body)
		if w.Code != status || status != http.StatusOK && !strings.HasPrefix(message(t, w.Body.String()), text) {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
	expect(admin.Operator, "/swarm/unlock", body, 403, "access denied")
	expect(admin.Operator, "/swarm/leave?force=1", "", 403, "access denied")
	expect(admin.Admin, "/swarm/unlock", `{"UnlockKey":"SWMKEY-1-short"}`, 400, "invalid key string")
	expect(admin.Admin, "/swarm/unlock", `{"UnlockKey":5}`, 400, "")
	expect(admin.Admin, "/swarm/leave", "", 503, "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	if len(n.tried) > 0 || n.left {
		t.Error("did what it had refused")
	}
	n.answer = object.Errorf(errdefs.ErrUnauthenticated, "swarm could not be unlocked: invalid key provided")
	expect(admin.Admin, "/swarm/unlock", body, 401, "swarm could not be unlocked: invalid key provided")
	n.answer = object.Errorf(errdefs.ErrResourceExhausted, "too many")
	expect(admin.Admin, "/swarm/unlock", body, 429, "too many")
	n.answer = nil
	expect(admin.Admin, "/swarm/unlock", body, 200, "")
	if len(n.tried) != 3 || string(n.tried[2]) != string(key) {
		t.Errorf("tried %d keys", len(n.tried))
	}
	n.state = swarm.LocalNodeStatePending
	expect(admin.Admin, "/swarm/unlock", body, 409, "swarm is not locked")
	expect(admin.Admin, "/swarm/leave?force=1", "", 200, "")
	if !n.left {
		t.Error("did not leave")
	}
}
