package admin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/admin"
)

// TestMain is also the client of another user: the tests run it again.
func TestMain(m *testing.M) {
	path := os.Getenv("ADMIN_TEST_DIAL")
	if path == "" {
		m.Run()
		return
	}
	who, err := whoami(path)
	if err != nil {
		who = err.Error()
	}
	fmt.Fprint(os.Stdout, who)
}

// whoami asks the server at a unix socket who the caller is.
func whoami(path string) (string, error) {
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	return ask(&c, "http://skep/")
}

func ask(c *http.Client, url string) (string, error) {
	defer c.CloseIdleConnections()
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func tellWho(w http.ResponseWriter, r *http.Request) {
	p := admin.Caller(r.Context())
	_, _ = fmt.Fprintf(w, "%s %s %s", p.Transport, p.Name, p.Role)
}

// serve runs a server on the endpoints until the test ends.
func serve(t *testing.T, c admin.ListenConfig) []net.Listener {
	t.Helper()
	ls, err := admin.Listen(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s := &admin.Server{Listeners: ls, Handler: http.HandlerFunc(tellWho), Logger: logger(t)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ls
}

// longDir is a directory whose path does not fit in the address of a socket.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// short is a path to the same directory that fits.
func short(t *testing.T, dir string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "d")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestListen_UnixSocketKnowsItsPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become other users")
	}
	// The directory of the test is root's; others have to get through it.
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "client")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	one := map[uint32]admin.Role{7001: admin.Operator}
	two := map[uint32]admin.Role{7001: admin.Operator, 7002: admin.Viewer}
	for i, tt := range []struct {
		name   string
		groups map[uint32]admin.Role
		cred   syscall.Credential
		want   string
	}{
		{"root", nil, syscall.Credential{}, "unix uid 0 admin"},
		{"other", nil, syscall.Credential{Uid: 65534, Gid: 65534}, "permission denied"},
		{"primary group", one, syscall.Credential{Uid: 65534, Gid: 7001}, "unix uid 65534 operator"},
		{"supplementary group", one, syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{5, 7001}}, "unix uid 65534 operator"},
		{"outside the group", one, syscall.Credential{Uid: 65534, Gid: 65534}, "permission denied"},
		{"second group", two, syscall.Credential{Uid: 65534, Gid: 7002}, "unix uid 65534 viewer"},
		{"both groups", two, syscall.Credential{Uid: 65534, Gid: 7002, Groups: []uint32{7001}}, "unix uid 65534 operator"},
		{"no group of several", two, syscall.Credential{Uid: 65534, Gid: 65534}, "unix uid 65534 nobody"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, fmt.Sprintf("s%d", i))
			serve(t, admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "unix", Address: path}}, Groups: tt.groups})
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = []string{"ADMIN_TEST_DIAL=" + path}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &tt.cred}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("got %q, %v; want %q", out, err, tt.want)
			}
		})
	}
}

func TestListen_UnixSocketReplacesADeadOneAndNothingElse(t *testing.T) {
	dir := longDir(t)
	link := short(t, dir)
	path := filepath.Join(dir, "skep.sock")
	unix := admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "unix", Address: path}}}

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Listen(t.Context(), unix); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: got %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: link + "/skep.sock"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if _, err := admin.Listen(t.Context(), unix); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("over a live socket: got %v", err)
	}
	_ = dead.Close()

	serve(t, unix)
	if got, err := whoami(link + "/skep.sock"); err != nil || got != "unix uid 0 admin" && os.Geteuid() == 0 {
		t.Errorf("got %q, %v", got, err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v", entries, err)
	}
}

func TestListen_ClosingRemovesTheSocketUnlessItIsAnothersNow(t *testing.T) {
	path := filepath.Join(short(t, t.TempDir()), "s")
	unix := admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "unix", Address: path}}}
	first, err := admin.Listen(t.Context(), unix)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := admin.Listen(t.Context(), unix)
	if err != nil {
		t.Fatal(err)
	}
	_ = first[0].Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first took the second's socket away: %v", err)
	}
	_ = second[0].Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
}

func TestListen_VsockEndsWithItsServer(t *testing.T) {
	vsock := admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "vsock", Address: "23751"}}}
	ls, err := admin.Listen(t.Context(), vsock)
	if err != nil {
		t.Skipf("no vsock on this machine: %v", err)
	}
	_ = ls[0].Close()
	if got := serve(t, vsock)[0].Addr().Network(); got != "vsock" {
		t.Errorf("got %q", got)
	}
}

func TestListen_OpensAllOrNothing(t *testing.T) {
	path := filepath.Join(short(t, t.TempDir()), "s")
	for _, bad := range []admin.Endpoint{{Network: "tcp", Address: "127.0.0.1:0"}, {Network: "vsock", Address: "x"}, {Network: "http", Address: ""}} {
		_, err := admin.Listen(t.Context(), admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "unix", Address: path}, bad}})
		if err == nil || !strings.Contains(err.Error(), bad.String()) {
			t.Errorf("%s: got %v", bad, err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s: left the socket behind", bad)
		}
	}
}

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		Subject: pkix.Name{CommonName: "operators"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a authority) issue(t *testing.T, unit string, usage x509.ExtKeyUsage, ends time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ends.Add(-2 * time.Hour), NotAfter: ends,
		Subject:     pkix.Name{CommonName: "alice", OrganizationalUnit: []string{unit}},
		ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestListen_TCPLetsInOperatorsOnly(t *testing.T) {
	operators, swarm := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	server, err := admin.ServerTLS(swarm.issue(t, "", x509.ExtKeyUsageServerAuth, soon), operators.pem())
	if err != nil {
		t.Fatal(err)
	}
	ls := serve(t, admin.ListenConfig{Endpoints: []admin.Endpoint{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: server})
	client := func(unit string) []tls.Certificate {
		return []tls.Certificate{operators.issue(t, unit, x509.ExtKeyUsageClientAuth, soon)}
	}
	for _, tt := range []struct {
		name  string
		certs []tls.Certificate
		max   uint16
		want  string // empty: refused
	}{
		{"admin", client("admin"), 0, "tcp alice admin"},
		{"operator", client("operator"), 0, "tcp alice operator"},
		{"viewer", client("viewer"), 0, "tcp alice viewer"},
		{"a node's unit", client("swarm-manager"), 0, "tcp alice nobody"},
		{"no certificate", nil, 0, ""},
		{"a node's certificate", []tls.Certificate{swarm.issue(t, "admin", x509.ExtKeyUsageClientAuth, soon)}, 0, ""},
		{"a server's certificate", []tls.Certificate{operators.issue(t, "admin", x509.ExtKeyUsageServerAuth, soon)}, 0, ""},
		{"expired", []tls.Certificate{operators.issue(t, "admin", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Minute))}, 0, ""},
		{"old TLS", client("admin"), tls.VersionTLS12, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(swarm.cert)
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
				RootCAs: roots, Certificates: tt.certs, MaxVersion: tt.max,
			}}}
			got, err := ask(c, "https://"+ls[0].Addr().String()+"/")
			if (err == nil) != (tt.want != "") || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
	if _, err := admin.ServerTLS(tls.Certificate{}, []byte("none")); err == nil {
		t.Error("accepted an authority without a certificate")
	}
}
