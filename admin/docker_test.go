package admin_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/admin"
	"skep/pki"
)

// TestServer_SpeaksWithDockerOverMutualTLS goes the whole way of an operator at
// another machine: the real client, its certificate, the role in it, a mux.
func TestServer_SpeaksWithDockerOverMutualTLS(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker client on this machine")
	}
	certPEM, keyPEM, err := pki.SelfSigned([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	operators := newAuthority(t)
	config, err := admin.ServerTLS(server, operators.pem())
	if err != nil {
		t.Fatal(err)
	}
	audit, path := openAudit(t)
	mux := newMux(
		t, audit,
		admin.Route{Pattern: "GET /_ping", Role: admin.Viewer, Handler: respond(200, "OK")},
		admin.Route{Pattern: "POST /v1.51/volumes/create", Role: admin.Operator, Mutates: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var req struct{ Name string }
			_ = json.NewDecoder(r.Body).Decode(&req)
			admin.NameObject(r.Context(), req.Name)
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"Name":"`+req.Name+`"}`)
		})},
	)
	ls, err := admin.Listen(t.Context(), admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	s := &admin.Server{Listeners: ls, Logger: logger(t), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		mux.ServeHTTP(w, r)
	})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	run := func(unit string) (string, error) {
		dir := t.TempDir()
		client := operators.issue(t, unit, x509.ExtKeyUsageClientAuth, time.Now().Add(time.Hour))
		der, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{
			"ca.pem":   certPEM,
			"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: client.Certificate[0]}),
			"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		} {
			if err = os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), docker, "volume", "create", "v-"+unit)
		cmd.Env = []string{"HOME=" + dir, "DOCKER_HOST=tcp://" + ls[0].Addr().String(), "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + dir, "DOCKER_API_VERSION=1.51"}
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := run("operator"); err != nil || !strings.HasSuffix(out, "v-operator") {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err := run("viewer"); err == nil || !strings.Contains(out, "access denied: alice is viewer") {
		t.Errorf("got %q, %v", out, err)
	}
	got := records(t, path)
	if len(got) != 2 || got[0].Object != "v-operator" || got[0].Principal != "alice" || got[1].Decision != "deny" || len(got[0].Body) != 64 || got[1].Body != "" {
		t.Errorf("got %+v", got)
	}
}
