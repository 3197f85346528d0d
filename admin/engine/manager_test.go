package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/admin"
	"skep/admin/engine"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// The texts of a node's membership.
const (
	notPart     = "This node is not part of a swarm"
	alreadyPart = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	notManager  = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	lastManager = "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
)

// membership is a node's part in a swarm whose state is in memory.
type membership struct {
	mu     sync.Mutex
	store  *storetest.Local // nil while the node is in no swarm
	nodeID string
	tb     testing.TB
	// meanwhile changes the store before the next change of the API is made; guarded by mu.
	meanwhile func(tx *store.Tx)
}

func (m *membership) Init(ctx context.Context, req swarm.InitRequest) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store != nil {
		return "", object.Errorf(errdefs.ErrUnavailable, "%s", alreadyPart)
	}
	s := storetest.New(m.tb)
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		return "", err
	}
	cluster := &object.Cluster{
		ID: object.NewID(), Spec: req.Spec, SubnetSize: 24, DataPathPort: 4789,
		JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"},
		RootCA:     object.RootCA{Cert: root.PEM(), Key: []byte("canary of the key")},
	}
	cluster.Spec.Name = "default"
	for _, p := range req.DefaultAddrPool {
		cluster.DefaultAddrPool = append(cluster.DefaultAddrPool, p.String())
	}
	node := &object.Node{Node: swarm.Node{
		ID:            object.NewID(),
		Spec:          swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: swarm.NodeAvailabilityActive},
		Description:   swarm.NodeDescription{Hostname: "node1"},
		Status:        swarm.NodeStatus{State: swarm.NodeStateReady, Addr: "192.168.78.1"},
		ManagerStatus: &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: "192.168.78.1:2377"},
	}}
	tx := store.Begin(s.Snapshot())
	tx.Create(cluster)
	tx.Create(node)
	ingress := storetest.Ingress()
	ingress.ID = object.NewID()
	tx.Create(ingress)
	if _, err := s.Propose(ctx, tx); err != nil {
		return "", err
	}
	m.store, m.nodeID = s, node.ID
	return node.ID, nil
}

func (m *membership) Join(_ context.Context, _ swarm.JoinRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store != nil {
		return object.Errorf(errdefs.ErrUnavailable, "%s", alreadyPart)
	}
	return errors.New("invalid join token")
}

func (m *membership) Leave(_ context.Context, force bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.store == nil:
		return object.Errorf(errdefs.ErrUnavailable, "%s", notPart)
	case !force:
		return object.Errorf(errdefs.ErrUnavailable, "%s", lastManager)
	}
	m.store, m.nodeID = nil, ""
	return nil
}

func (m *membership) Info(context.Context) swarm.Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store == nil {
		return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
	}
	return swarm.Info{
		NodeID: m.nodeID, NodeAddr: "192.168.78.1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true,
		RemoteManagers: []swarm.Peer{{NodeID: m.nodeID, Addr: "192.168.78.1:2377"}},
	}
}

func (m *membership) Store(context.Context) (store.Proposer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store == nil {
		return nil, object.Errorf(errdefs.ErrUnavailable, "%s", notManager)
	}
	if m.meanwhile != nil {
		return overtaken{m.store, m}, nil
	}
	return m.store, nil
}

// overtaken is a store that another changes before the first change is made.
type overtaken struct {
	*storetest.Local
	m *membership
}

func (o overtaken) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	o.m.mu.Lock()
	change := o.m.meanwhile
	o.m.meanwhile = nil
	o.m.mu.Unlock()
	if change != nil {
		o.Write(o.m.tb, change)
	}
	return o.Local.Propose(ctx, tx)
}

func (m *membership) ReachCA(_ context.Context, cfg swarm.CAConfig, _, _ []byte, which string) error {
	if len(cfg.ExternalCAs) == 0 {
		return object.Errorf(errdefs.ErrInvalidArgument, "there must be at least one valid, reachable external CA corresponding to the %s CA certificate", which)
	}
	return nil
}

func (m *membership) Replica() (*store.Snapshot, error) {
	p, err := m.Store(context.Background())
	if err != nil {
		return nil, err
	}
	return p.Snapshot(), nil
}

// catalogue knows the digests of some images.
type catalogue struct {
	engine.Images // what is not here is not called
	digests       map[string]digest.Digest
	auth          *registry.AuthConfig // of the last look-up
}

func (c *catalogue) List(context.Context) ([]image.Summary, error) {
	return make([]image.Summary, len(c.digests)), nil
}

func (c *catalogue) Distribution(_ context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	c.auth = auth
	d, ok := c.digests[ref]
	if !ok {
		return registry.DistributionInspect{}, errors.New("registry is unreachable")
	}
	return registry.DistributionInspect{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 500},
		Platforms:  []ocispec.Platform{{Architecture: "amd64", OS: "linux"}},
	}, nil
}

func (c *catalogue) Login(_ context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	if auth.Password != "right" {
		return registry.AuthResponse{}, object.Errorf(errdefs.ErrUnauthenticated, "incorrect username or password")
	}
	return registry.AuthResponse{Status: "Login Succeeded"}, nil
}

type someContainers struct{ engine.Containers }

func (someContainers) List(context.Context, bool, bool) ([]container.Summary, error) {
	return []container.Summary{{State: container.StateRunning}, {State: container.StatePaused}, {State: container.StateExited}}, nil
}

func (someContainers) ConnectNetwork(_ context.Context, ref, name string, s *network.EndpointSettings) error {
	return object.Errorf(errdefs.ErrConflict, "%s goes to %s as %v", ref, name, s.Aliases)
}

// DisconnectNetwork knows the network by its ID only.
func (someContainers) DisconnectNetwork(_ context.Context, ref, name string) error {
	if name == "full" {
		return object.Errorf(errdefs.ErrNotFound, "container %s is not connected to network %s", ref, name)
	}
	return nil
}

type localNetworks struct{}

func (localNetworks) List(context.Context) ([]network.Inspect, error) {
	var all []network.Inspect
	for _, name := range []string{"bridge", "host", "none", "mine"} {
		all = append(all, network.Inspect{Network: network.Network{ID: "id-of-" + name, Name: name, Scope: "local"}})
	}
	return all, nil
}

func (localNetworks) Check(_ context.Context, id string) (object.NodeCheck, error) {
	return object.NodeCheck{}, object.Errorf(errdefs.ErrNotFound, "network %s is not on this node", id)
}

func (localNetworks) Health(context.Context) object.NetworkHealth {
	return object.NetworkHealth{Balancer: "nft", Repaired: 7}
}

// taskLogs are logs in memory, by task; a nil log cannot be read.
type taskLogs struct {
	mu   sync.Mutex
	logs map[string][]object.LogLine
	news chan struct{}
	// open counts those that are being read, most is the most there ever were.
	open, most int
}

func (l *taskLogs) count(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open += n
	l.most = max(l.most, l.open)
}

func (l *taskLogs) add(task string, lines ...object.LogLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logs[task] = append(l.logs[task], lines...)
	close(l.news)
	l.news = make(chan struct{})
}

func (l *taskLogs) TaskLogs(ctx context.Context, t *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		l.count(1)
		defer l.count(-1)
		for n := 0; ; {
			l.mu.Lock()
			lines, ok := l.logs[t.ID]
			news := l.news
			l.mu.Unlock()
			if !ok {
				yield(object.LogLine{}, errors.New("node is down"))
				return
			}
			if n == 0 && q.Tail >= 0 {
				n = max(0, len(lines)-q.Tail)
			}
			for ; n < len(lines); n++ {
				if line := lines[n]; (line.Stderr && q.Stderr || !line.Stderr && q.Stdout) && !yield(line, nil) {
					return
				}
			}
			if !q.Follow {
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				yield(object.LogLine{}, ctx.Err())
				return
			}
		}
	}
}

type hostFacts struct{}

func (hostFacts) Info(context.Context) (system.Info, error) {
	return system.Info{ID: "host", Name: "node1", OSType: "linux", NCPU: 2, SystemTime: time.Now().Format(time.RFC3339Nano)}, nil
}

func (hostFacts) Version(context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{Version: "0.1", Os: "linux", Arch: "amd64"}, nil
}

type noVolumes struct{ engine.Volumes }

// manager is a node's API on a unix socket.
type manager struct {
	*membership
	api    *engine.API
	events *engine.Journal
	images *catalogue
	logs   *taskLogs
	socket string
	http   *http.Client
	role   admin.Role
}

func newManager(tb testing.TB) *manager {
	tb.Helper()
	m := offline(tb)
	m.listen(tb)
	return m
}

// offline is a manager that does not listen.
func offline(tb testing.TB) *manager {
	tb.Helper()
	m := &manager{
		membership: &membership{tb: tb},
		events:     engine.NewJournal(),
		images:     &catalogue{digests: map[string]digest.Digest{}},
		logs:       &taskLogs{logs: map[string][]object.LogLine{}, news: make(chan struct{})},
		role:       admin.Admin,
	}
	api, err := engine.New(engine.Config{
		Swarm: m.membership, Containers: someContainers{}, Images: m.images, Volumes: noVolumes{}, Networks: localNetworks{},
		TaskLogs: m.logs, Host: hostFacts{}, Events: m.events, Version: "0.1",
		Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	})
	if err != nil {
		tb.Fatal(err)
	}
	m.api = api
	return m
}

// handler is the API with its versions, without authorisation.
func (m *manager) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range m.api.Routes() {
		mux.Handle(r.Pattern, r.Handler)
	}
	return m.api.Versioned(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			engine.NotFound(w, r)
			return
		}
		mux.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), admin.Principal{Role: m.role})))
	}))
}

func (m *manager) listen(tb testing.TB) {
	tb.Helper()
	m.socket = filepath.Join(tb.TempDir(), "api.sock")
	l, err := new(net.ListenConfig).Listen(tb.Context(), "unix", m.socket)
	if err != nil {
		tb.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(m.handler())
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	tb.Cleanup(srv.Close)
	m.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.socket)
	}}}
	tb.Cleanup(m.http.CloseIdleConnections)
}

// initialised is a manager in a swarm of its own.
func initialised(tb testing.TB) *manager {
	tb.Helper()
	m := newManager(tb)
	m.initialise(tb)
	return m
}

func (m *manager) initialise(tb testing.TB) {
	tb.Helper()
	if _, err := m.Init(tb.Context(), swarm.InitRequest{DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}}); err != nil {
		tb.Fatal(err)
	}
}

func (m *manager) client(tb testing.TB) *client.Client {
	tb.Helper()
	c, err := client.New(client.WithHost("unix://" + m.socket))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// call sends a request and returns status, headers and body.
func (m *manager) call(tb testing.TB, method, path, body string) (int, http.Header, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, "http://skep"+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := m.http.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res.StatusCode, res.Header, string(bytes.TrimSuffix(text, []byte("\n")))
}

// ok is call for what must succeed; it decodes the reply into v, if not nil.
func (m *manager) ok(tb testing.TB, method, path, body string, v any) {
	tb.Helper()
	status, _, text := m.call(tb, method, path, body)
	if status >= 300 {
		tb.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(text), v); err != nil {
			tb.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
}

// message is the text of an error's reply.
func message(tb testing.TB, body string) string {
	tb.Helper()
	var e struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		tb.Fatalf("reply %q is no error: %v", body, err)
	}
	return e.Message
}
