package appliance_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// TestTwoNodes_ShareAMachine runs two nodes in one network namespace: nothing
// of one collides with the other's but ports, and one that both want is refused.
func TestTwoNodes_ShareAMachine(t *testing.T) {
	a := nodetest.New(t, nodetest.Binary(t), "a", nodetest.File)
	file := strings.Replace(nodetest.File, ":2377", ":2378", 1)
	b := a.Beside(t, "b", strings.Replace(file, "  init:", "  data_path: {port: 4800}\n  init:", 1))
	path := dockerCLI(t)
	a.Start(t)
	b.Start(t)
	da, db := a.CLI(t, path), b.CLI(t, path)
	da.Run("service", "create", "-d", "--name", "web", "--replicas", "2", "-p", "8080:80", "skep/hello")
	db.Run("service", "create", "-d", "--name", "web", "--replicas", "2", "-p", "8081:80", "skep/hello")
	for _, d := range []*nodetest.CLI{da, db} {
		eventually(t, "both services run", func() bool { return strings.Contains(d.Run("service", "ls"), "2/2") })
	}
	for _, url := range []string{"http://127.0.0.1:8080/", "http://127.0.0.1:8081/"} {
		if err := fetch(t.Context(), a.Client(), url); err != nil {
			t.Error(err)
		}
	}
	db.Run("service", "create", "-d", "--restart-condition", "none", "--name", "thief", "-p", "mode=host,published=8080,target=80", "skep/hello")
	eventually(t, "the port is refused", func() bool {
		return strings.Contains(db.Run("service", "ps", "--no-trunc", "thief"), "port is already allocated")
	})
	db.Run("service", "rm", "web", "thief")
	eventually(t, "b is clean", func() bool { return !strings.Contains(db.Run("ps", "-aq"), "\n") })
	if err := fetch(t.Context(), a.Client(), "http://127.0.0.1:8080/"); err != nil {
		t.Errorf("after b removed its service: %v", err)
	}
	b.Stop(t)
	da.Run("service", "rm", "web")
	eventually(t, "a is clean", func() bool { return len(a.Leftovers()) == 0 })
	a.Stop(t)
}

// TestUpgrade_KeepsContainersAndStarts replaces the binary under a running
// node, which goes on starting containers, and then starts the new one, which
// adopts them.
func TestUpgrade_KeepsContainersAndStarts(t *testing.T) {
	data, err := os.ReadFile(nodetest.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "skep")
	replace := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(binary+".new", data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(binary+".new", binary); err != nil {
			t.Fatal(err)
		}
	}
	replace(data)
	n := nodetest.New(t, binary, "upgrade", nodetest.File)
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("run", "-d", "--name", "old", "busybox", "sleep", "1000")

	replace(append(data, "another version"...))
	if out := docker.Run("run", "--rm", "busybox", "echo", "from the old binary"); out != "from the old binary\n" {
		t.Errorf("run after the replacement printed %q", out)
	}
	docker.Run("run", "-d", "--name", "between", "skep/hello")
	n.Stop(t)
	n.Start(t)
	for _, name := range []string{"old", "between"} {
		if out := docker.Run("inspect", "--format", "{{.State.Running}} {{.RestartCount}}", name); out != "true 0\n" {
			t.Errorf("%s after the upgrade: %s", name, out)
		}
	}
	if out := docker.Run("exec", "old", "echo", "reached"); out != "reached\n" {
		t.Errorf("exec in a container of the old binary printed %q", out)
	}
	if out := docker.Run("run", "--rm", "busybox", "echo", "from the new binary"); out != "from the new binary\n" {
		t.Errorf("run after the upgrade printed %q", out)
	}
	docker.Run("rm", "-f", "old", "between")
	n.Stop(t)
}

// TestTCP_NeedsACertificateOfTheOperators drives a node over TCP.
func TestTCP_NeedsACertificateOfTheOperators(t *testing.T) {
	dir := t.TempDir()
	operators := newAuthority(t, dir, "operators")
	operators.issue("client", "admin")
	operators.issue("server", "server")
	others := newAuthority(t, t.TempDir(), "others")
	others.issue("client", "admin")
	n := nodetest.New(t, nodetest.Binary(t), "tcp", nodetest.File)
	n.WriteFile(t, strings.Replace(nodetest.File, `admin:
  listen: ["unix://{{dir}}/skep.sock"]`, `admin:
  listen: ["unix://{{dir}}/skep.sock", "tcp://127.0.0.1:2376"]
  tls: {client_ca: "`+dir+`/ca.pem", cert: "`+dir+`/server.pem", key: "`+dir+`/server-key.pem"}`, 1))
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	over := func(certs string) (string, error) {
		var out []byte
		err := n.Do(func() (err error) {
			cmd := docker.Command("-H", "tcp://127.0.0.1:2376", "--tlsverify", "--tlscacert", dir+"/ca.pem",
				"--tlscert", certs+"/client.pem", "--tlskey", certs+"/client-key.pem", "node", "ls")
			out, err = cmd.CombinedOutput()
			return err
		})
		return string(out), err
	}
	if out, err := over(dir); err != nil || !strings.Contains(out, "Leader") {
		t.Errorf("with an operator's certificate: %v %s", err, out)
	}
	if out, err := over(others.dir); err == nil {
		t.Errorf("with another authority's certificate: %s", out)
	}
	if err := fetch(t.Context(), n.Client(), "http://127.0.0.1:2376/version"); err == nil {
		t.Error("plain HTTP was answered")
	}
	n.Stop(t)
}

// authority issues certificates into a directory, in the files that docker expects.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir, cert: template(name)}
	a.cert.IsCA, a.cert.BasicConstraintsValid, a.cert.KeyUsage = true, true, x509.KeyUsageCertSign
	a.key = newKey(t)
	a.write("ca", a.cert, a.key)
	return a
}

func (a *authority) issue(file, unit string) {
	a.t.Helper()
	c := template(file)
	c.Subject.OrganizationalUnit = []string{unit}
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	a.write(file, c, newKey(a.t))
}

func (a *authority) write(file string, c *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		file + ".pem":     {Type: "CERTIFICATE", Bytes: der},
		file + "-key.pem": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
