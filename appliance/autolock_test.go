package appliance_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"skep/admin"
	"skep/appliance/nodetest"
	"skep/pki/identity"
)

// unlockKey is the swarm's.
func unlockKey(docker *nodetest.CLI) string {
	return strings.TrimSpace(docker.Run("swarm", "unlock-key", "-q"))
}

// resealed waits until the node has changed its keys so many times.
func resealed(t *testing.T, n *nodetest.Node, times int) {
	t.Helper()
	eventually(t, "all files sealed anew", func() bool { return strings.Count(n.Log(), "sealed all files anew") >= times })
}

// locked starts a node that is locked, and waits until it says so.
func locked(t *testing.T, n *nodetest.Node, docker *nodetest.CLI) {
	t.Helper()
	n.Launch(t)
	eventually(t, "the node is locked", func() bool {
		out, err := docker.Try("info", "--format", "{{.Swarm.LocalNodeState}}")
		return err == nil && out == "locked\n"
	})
}

func unlock(t *testing.T, docker *nodetest.CLI, key string) {
	t.Helper()
	docker.Pipe(strings.NewReader(key+"\n"), "swarm", "unlock")
}

// operator is an HTTP client with a certificate, at the other end of which is
// whoever shows the certificate that it has seen first.
type operator struct {
	http   *http.Client
	server []byte // certificate
}

func newOperator(t *testing.T, n *nodetest.Node, file string) *operator {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(file+".pem", file+"-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	o := &operator{}
	config := &tls.Config{
		Certificates:       []tls.Certificate{cert},
		InsecureSkipVerify: true, // pinned instead
		VerifyConnection: func(s tls.ConnectionState) error {
			if seen := s.PeerCertificates[0].Raw; o.server == nil {
				o.server = seen
			} else if !bytes.Equal(seen, o.server) {
				return fmt.Errorf("the node shows another certificate")
			}
			return nil
		},
	}
	o.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = n.Do(func() (err error) {
				c, err = (&tls.Dialer{Config: config}).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		},
	}}
	return o
}

func (o *operator) do(t *testing.T, method, path, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://127.0.0.1:2376"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := o.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Message string }
	if json.Unmarshal(b, &m) == nil && m.Message != "" {
		return resp.StatusCode, m.Message
	}
	return resp.StatusCode, string(b)
}

// TestTCP_UnlocksANodeThatShowsItsCertificate: without the keystore a node
// still proves to its operators which node it is.
func TestTCP_UnlocksANodeThatShowsItsCertificate(t *testing.T) {
	dir := t.TempDir()
	operators := newAuthority(t, dir, "operators")
	operators.issue("admin", "admin")
	operators.issue("viewer", "viewer")
	n := nodetest.New(t, nodetest.Binary(t), "locktcp", nodetest.File)
	n.WriteFile(t, strings.NewReplacer(`listen: ["unix://{{dir}}/skep.sock"]`, `listen: ["unix://{{dir}}/skep.sock", "tcp://127.0.0.1:2376"]
  tls: {client_ca: "`+dir+`/ca.pem"}`, "init: {}", "init: {autolock: true}").Replace(nodetest.File))
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	boss, viewer := newOperator(t, n, dir+"/admin"), newOperator(t, n, dir+"/viewer")
	if status, _ := boss.do(t, "GET", "/nodes", ""); status != http.StatusOK {
		t.Errorf("nodes: got %d", status)
	}
	key := unlockKey(docker)
	resealed(t, n, 1)
	n.Kill(t)
	locked(t, n, docker)

	for _, tt := range []struct {
		who          *operator
		method, path string
		body, answer string
		status       int
	}{
		{boss, "GET", "/_ping", "", "OK", 200},
		{viewer, "GET", "/v1.44/info", "", "", 200},
		{boss, "GET", "/skep/health", "", `the swarm is locked: unlock it with "docker swarm unlock"`, 503},
		{boss, "GET", "/nodes", "", "Swarm is encrypted and needs to be unlocked before it can be used.", 503},
		{viewer, "POST", "/swarm/unlock", `{"UnlockKey":"` + key + `"}`, "access denied: viewer is viewer", 403},
		{boss, "POST", "/swarm/unlock", `{"UnlockKey":"SWMKEY-1-x"}`, "invalid key string", 400},
		{boss, "POST", "/swarm/unlock", `{"UnlockKey":"SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8"}`, "swarm could not be unlocked: invalid key provided", 401},
		{boss, "POST", "/swarm/unlock", `{"UnlockKey":"` + key + `"}`, "", 200},
		{boss, "GET", "/swarm/unlockkey", "", `{"UnlockKey":"` + key + `"}`, 200},
		{boss, "GET", "/skep/health", "", "ready", 200},
		{boss, "POST", "/swarm/unlock", `{"UnlockKey":"` + key + `"}`, "swarm is not locked", 409},
	} {
		status, answer := tt.who.do(t, tt.method, tt.path, tt.body)
		if status != tt.status || !strings.HasPrefix(answer, tt.answer) {
			t.Errorf("%s %s: got %d %s, want %d %s", tt.method, tt.path, status, answer, tt.status, tt.answer)
		}
	}
	n.Stop(t)

	// What a locked node was asked to do is on record.
	front, err := identity.OpenFront(n.Path("data"))
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	var got []string
	err = admin.ReadAudit(n.Path("data", "audit-locked"), front.Keyring(), func(r admin.Record) error {
		got = append(got, fmt.Sprintf("%s %s %s %d", r.Principal, r.Pattern, r.Decision, r.Status))
		return nil
	})
	want := []string{
		"viewer POST /swarm/unlock deny 403", "admin POST /swarm/unlock allow 400",
		"admin POST /swarm/unlock allow 401", "admin POST /swarm/unlock allow 200",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("on record are %q, %v; want %q", got, err, want)
	}
}

// TestRotation_LeavesNothingForTheOldKey: after a new unlock key, no file of the
// node is sealed with the key of before, and the unlock keys are in none.
func TestRotation_LeavesNothingForTheOldKey(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "rotation", nodetest.File)
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("swarm", "update", "--autolock")
	resealed(t, n, 1)
	docker.Pipe(strings.NewReader(canary), "secret", "create", "s-"+canary, "-")
	docker.Run("service", "create", "-d", "--name", "svc", "--secret", "s-"+canary, "--env", "E="+canary, "busybox", "sleep", "1000")
	docker.Run("run", "-d", "--name", "own", "-e", "E="+canary, "busybox", "sleep", "1000")
	eventually(t, "the service runs", func() bool {
		return strings.Contains(docker.Run("service", "ls"), "1/1")
	})
	snapshotLocked(t, n, docker)
	old := headers(t, n)
	if old == "" || search(discard{t}, n.Path("data"), old) < 3 {
		t.Fatalf("the old key has sealed nothing")
	}
	first := unlockKey(docker)
	docker.Run("swarm", "unlock-key", "--rotate")
	second := unlockKey(docker)
	resealed(t, n, 2)

	if fresh := headers(t, n); fresh == old || search(discard{t}, n.Path("data"), fresh) < 3 {
		t.Error("nothing is sealed with a new key")
	}
	n.Kill(t)
	// The log's file keeps pages that are free: that they open no more is what
	// the old key was thrown away for.
	logs, err := filepath.Glob(n.Path("data", "raft", "*", "raft.db"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("found logs %v, %v", logs, err)
	}
	if err := os.Rename(logs[0], n.Path("raft.db")); err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString([]byte(old)[:9]) // as the audit has it
	found := search(t, n.Path("data"), old) + search(t, n.Path("data"), text)
	if err := os.Rename(n.Path("raft.db"), logs[0]); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{first, second} {
		raw, err := identity.ParseUnlockKey(key)
		if err != nil {
			t.Fatal(err)
		}
		found += search(t, n.Path("data"), key) + search(t, n.Path("data"), string(raw))
	}
	found += search(t, n.Path("data"), canary)
	if found > 0 {
		t.Errorf("%d files are not as they should be", found)
	}
	locked(t, n, docker)
	unlock(t, docker, second)
	if out := docker.Run("inspect", "--format", "{{.State.Running}} {{.RestartCount}}", "own"); out != "true 0\n" {
		t.Errorf("the container after the rotation: %s", out)
	}
	if out := docker.Run("secret", "ls", "--format", "{{.Name}}"); out != "s-"+canary+"\n" {
		t.Errorf("the secrets after the rotation: %s", out)
	}
	docker.Run("service", "rm", "svc")
	docker.Run("rm", "-f", "own")
	n.Stop(t)
}

// TestRotation_SurvivesKills: a node that is killed while its keys change opens
// with the key from before or after, and goes on with the change.
func TestRotation_SurvivesKills(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "rotations", strings.Replace(nodetest.File, "init: {}", "init: {autolock: true}", 1))
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("run", "-d", "--name", "own", "busybox", "sleep", "1000")
	resealed(t, n, 1)
	for i := range 6 {
		docker.Pipe(strings.NewReader("x"), "config", "create", fmt.Sprintf("c%d", i), "-")
		before := unlockKey(docker)
		after := rotate(t, n)
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		n.Kill(t)
		locked(t, n, docker)
		opens := "the new key"
		if !tryUnlock(docker, after) {
			opens = "the old key"
			if !tryUnlock(docker, before) {
				t.Fatal("neither key opens the node")
			}
		}
		t.Logf("cycle %d: %s", i, opens)
		if got := strings.Fields(docker.Run("config", "ls", "-q")); len(got) != i+1 {
			t.Errorf("cycle %d: %d configs", i, len(got))
		}
	}
	const changed, done = "changed the key of the keystore", "sealed all files anew"
	settled := func() bool { return strings.LastIndex(n.Log(), done) > strings.LastIndex(n.Log(), changed) }
	eventually(t, "the node has its key", settled)
	before := strings.Count(n.Log(), changed)
	last := rotate(t, n)
	eventually(t, "the node has its last key", func() bool { return strings.Count(n.Log(), changed) > before && settled() })
	n.Stop(t)
	locked(t, n, docker)
	unlock(t, docker, last)
	if out := docker.Run("inspect", "--format", "{{.State.Running}} {{.RestartCount}}", "own"); out != "true 0\n" {
		t.Errorf("the container in the end: %s", out)
	}
	docker.Run("rm", "-f", "own")
	n.Stop(t)
}

// rotate gives the swarm another unlock key, in less time than the docker
// command takes.
func rotate(t *testing.T, n *nodetest.Node) (key string) {
	t.Helper()
	c, err := client.New(client.WithHost(n.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.SwarmInspect(t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.SwarmUpdate(t.Context(), client.SwarmUpdateOptions{Version: s.Swarm.Version, Spec: s.Swarm.Spec, RotateManagerUnlockKey: true})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.SwarmGetUnlockKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return answer.Key
}

func tryUnlock(docker *nodetest.CLI, key string) bool {
	cmd := docker.Command("swarm", "unlock")
	cmd.Stdin = strings.NewReader(key + "\n")
	return cmd.Run() == nil
}

// snapshotLocked makes a node that locks write a snapshot.
func snapshotLocked(t *testing.T, n *nodetest.Node, docker *nodetest.CLI) {
	t.Helper()
	key := unlockKey(docker)
	n.Stop(t)
	files, err := filepath.Glob(n.Path("data", "raft", "*", "snapshots", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no snapshot was written: %v", err)
	}
	locked(t, n, docker)
	unlock(t, docker, key)
}

// headers is how every file begins that the active key of a node has sealed.
func headers(t *testing.T, n *nodetest.Node) string {
	t.Helper()
	files, err := filepath.Glob(n.Path("data", "containers", "*", "config"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no container: %v", err)
	}
	var header string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" && header != string(b[:10]) {
			t.Error("containers are sealed with different keys")
		}
		header = string(b[:10])
	}
	return header
}
