package controltest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
)

// Caller is somebody who calls a port.
type Caller struct {
	Name string
	// Identity without a certificate is that of an anonymous caller.
	Identity *control.Identity
	// Class is what the port is to take the caller for.
	Class control.Class
	// Shut says that the handshake is to fail already.
	Shut bool
}

// Cast is who there is in the store of the manager under test. Removed is not
// in the store any more, Demoted is in it as a worker.
type Cast struct {
	Swarm                             *Swarm
	Worker, Manager, Removed, Demoted string // node IDs
	// Generation is that of certificates that are good.
	Generation uint64
	// Old is that of certificates from before the removal and the demotion.
	Old uint64
}

// Callers are callers of every kind.
func (c Cast) Callers(tb testing.TB) []Caller {
	tb.Helper()
	s := c.Swarm
	later, earlier := *s, *s
	later.Epoch++
	earlier.Epoch--
	stranger := NewSwarm(tb, s.Cluster)
	sibling := &Swarm{Root: s.Root, Cluster: "another", Epoch: s.Epoch}
	liar := s.Worker(tb, c.Worker, c.Generation)
	liar.NodeID = c.Manager
	const day = 24 * time.Hour
	callers := []Caller{
		{Name: "anonymous", Identity: &control.Identity{Cluster: s.Cluster, Epoch: s.Epoch}, Class: control.Anonymous},
		{Name: "worker", Identity: s.Worker(tb, c.Worker, c.Generation), Class: control.Worker},
		{Name: "manager", Identity: s.Manager(tb, c.Manager, c.Generation), Class: control.Manager},
		{Name: "removed worker", Identity: s.Worker(tb, c.Removed, c.Old)},
		{Name: "removed manager", Identity: s.Manager(tb, c.Removed, c.Old)},
		{Name: "demoted manager with its old certificate", Identity: s.Manager(tb, c.Demoted, c.Old)},
		{Name: "demoted manager with a worker's certificate", Identity: s.Worker(tb, c.Demoted, c.Generation), Class: control.Worker},
		{Name: "worker of a later epoch", Identity: later.Worker(tb, c.Worker, c.Generation)},
		{Name: "manager of a later epoch", Identity: later.Manager(tb, c.Manager, c.Generation)},
		{Name: "worker with another's name", Identity: liar},
	}
	if s.Epoch > 0 {
		callers = append(callers, Caller{Name: "manager of an earlier epoch", Identity: earlier.Manager(tb, c.Manager, c.Generation)})
	}
	for _, role := range []string{pki.Worker, pki.Manager} {
		id := map[string]string{pki.Worker: c.Worker, pki.Manager: c.Manager}[role]
		callers = append(callers,
			Caller{Name: "expired " + role, Identity: s.Identity(tb, id, role, c.Generation, 2*day, day), Shut: true},
			Caller{Name: role + " of another CA", Identity: stranger.Identity(tb, id, role, c.Generation, 0, day), Shut: true},
			Caller{Name: role + " of another swarm", Identity: sibling.Identity(tb, id, role, c.Generation, 0, day), Shut: true},
		)
	}
	return callers
}

// Matrix has every caller call every route at a port, each as the class that
// the route is for, and try to speak Raft. A caller reaches the routes of its
// own class and nothing else. The requests are empty: handlers refuse them, or
// wait for more, and do nothing.
func Matrix(t *testing.T, at wire.Peer, table []control.Row, callers []Caller) {
	t.Helper()
	if len(table) == 0 {
		t.Fatal("a port without routes")
	}
	for _, c := range callers {
		t.Run(c.Name, func(t *testing.T) {
			client := c.client(t)
			for _, row := range table {
				reached, err := c.reaches(t.Context(), client, at, row)
				switch {
				case c.Shut && err == nil:
					t.Errorf("%s: the connection was let in", row.Pattern)
				case reached != c.has(table, row):
					t.Errorf("%s of class %s: reached: %t (%v)", row.Pattern, row.Class, reached, err)
				}
			}
			if err := c.raft(t, at); (err == nil) != (c.Class == control.Manager) {
				t.Errorf("raft: got error %v", err)
			}
		})
	}
}

// has tells whether the caller is to reach a route: it is of the caller's class,
// or that class has the same. Nodes ask as what their certificates say, and are
// served as what they are.
func (c Caller) has(table []control.Row, row control.Row) bool {
	prefix := map[control.Class]string{control.Worker: "/w/v1/", control.Manager: "/m/v1/"}
	from, to := prefix[row.Class], prefix[c.Class]
	if from == "" || to == "" {
		return row.Class == c.Class
	}
	return slices.Contains(table, control.Row{Class: c.Class, Pattern: strings.Replace(row.Pattern, from, to, 1)})
}

// client shows the caller's certificate and believes every server: what the
// port lets in is the question here.
func (c Caller) client(t *testing.T) *http.Transport {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &c.Identity.Certificate, nil
			},
		},
		Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// reaches tells whether the handler of a route was reached.
func (c Caller) reaches(ctx context.Context, client *http.Transport, at wire.Peer, row control.Row) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	method, path, _ := strings.Cut(row.Pattern, " ")
	if method == "ANY" {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+at.Addr+fill(path), bytes.NewReader(nil))
	if err != nil {
		return false, err
	}
	if err = c.Identity.Hello(r.Header, at.NodeID); err != nil {
		return false, err
	}
	resp, err := client.RoundTrip(r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusNotImplemented:
		return false, nil
	default:
		return true, nil
	}
}

// fill gives every wildcard of a path a value.
func fill(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "{") {
			parts[i] = "x"
		}
	}
	return strings.Join(parts, "/")
}

// raft opens a Raft connection as the caller, who believes every server.
func (c Caller) raft(t *testing.T, at wire.Peer) error {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	id := func() *control.Identity { return c.Identity }
	d := control.NewDialer(control.DialerConfig{Identity: id, Resolve: func(string) string { return at.Addr }, Logger: log})
	defer d.Close()
	p, err := control.New(control.Config{
		Identity: id, Dialer: d, Logger: log,
		Judge: func(pki.Node, bool) control.Class { return control.Manager },
	})
	if err != nil {
		return err
	}
	layer := p.Layer(t.Context())
	defer layer.Close()
	conn, err := layer.Dial(raft.ServerAddress(at.NodeID), 5*time.Second)
	if err != nil {
		return fmt.Errorf("dial raft: %w", err)
	}
	return conn.Close()
}
