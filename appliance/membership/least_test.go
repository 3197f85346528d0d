package membership_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// serve runs a service on a node, with a secret and a config of its own, all of
// them called alike, and returns its task.
func (w *world) serve(m *node, name, on string) *object.Task {
	w.Helper()
	p, err := m.Store(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	secret, config := &object.Secret{}, &object.Config{}
	secret.ID, secret.Spec.Name, secret.Spec.Data = object.NewID(), "secret-"+name, []byte("the secret of "+name)
	config.ID, config.Spec.Name, config.Spec.Data = object.NewID(), "config-"+name, []byte("the config of "+name)
	spec := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(1))}}}
	spec.Name = name
	spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname==" + on}}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{
		Image:   "image-" + name,
		Secrets: []*swarm.SecretReference{{SecretID: secret.ID, SecretName: secret.Spec.Name, File: &swarm.SecretReferenceFileTarget{Name: "s"}}},
		Configs: []*swarm.ConfigReference{{ConfigID: config.ID, ConfigName: config.Spec.Name, File: &swarm.ConfigReferenceFileTarget{Name: "c"}}},
	}
	tx := store.Begin(p.Snapshot())
	tx.Create(secret)
	tx.Create(config)
	s := store.CreateService(tx, spec, nil)
	if _, err := p.Propose(w.Context(), tx); err != nil {
		w.Fatal(err)
	}
	var task *object.Task
	w.until(name+" runs", func() bool {
		for t := range m.tasks() {
			if t.ServiceID == s.ID && t.Status.State == swarm.TaskStateRunning {
				task = t
			}
		}
		return task != nil
	})
	return task
}

// tasks are those that a manager knows of.
func (n *node) tasks() func(func(*object.Task) bool) {
	s, err := n.Replica()
	if err != nil {
		n.t.Fatal(err)
	}
	return s.Tasks.All()
}

// worker is a client with a worker's real identity, which does what it likes.
func worker(t *testing.T, id *control.Identity) *control.Dialer {
	t.Helper()
	d := control.NewDialer(control.DialerConfig{
		Identity: func() *control.Identity { return id },
		Resolve:  func(string) string { return "" },
		Logger:   slog.New(slog.DiscardHandler),
	})
	t.Cleanup(d.Close)
	return d
}

// TestLeast_CompromisedWorkerHasItsOwnOnly (SEC-LEAST, SEC-ID) uses the keys of a
// worker for all that they may be good for.
func TestLeast_CompromisedWorkerHasItsOwnOnly(t *testing.T) {
	w := &world{T: t}
	m1, w1, w2 := w.add("m1"), w.add("w1"), w.add("w2")
	m1.init()
	tokens := m1.tokens()
	w1.join(tokens.Worker, m1)
	w2.join(tokens.Worker, m1)
	w.until("formed", m1.sees("m1 manager ready reachable leader", "w1 worker ready", "w2 worker ready"))
	own, foreign := w.serve(m1, "own", "w1"), w.serve(m1, "foreign", "w2")
	thief, victim := *w1.Identity(), w2.Identity().NodeID
	w1.shut()
	d := worker(t, &thief)
	at := wire.Peer{NodeID: m1.Identity().NodeID, Addr: m1.addr + ":2377"}
	s, err := m1.Replica()
	if err != nil {
		t.Fatal(err)
	}
	cluster := s.Cluster()

	conn, err := d.Stream(t.Context(), at, "/session")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, acknowledged := follow(t, conn, foreign.ID)
	t.Run("it is sent its own only", func(t *testing.T) {
		want := []string{"config config-own", "revision " + own.ServiceID, "secret secret-own", "task " + own.ID}
		if diff := cmp.Diff(want, got.items); diff != "" {
			t.Errorf("items (-want +got):\n%s", diff)
		}
		for name, secret := range map[string][]byte{
			"another's secret": []byte("the secret of foreign"), "another's config": []byte("the config of foreign"), "another's image": []byte("image-foreign"),
			"worker token": []byte(tokens.Worker), "manager token": []byte(tokens.Manager), "root key": cluster.RootCA.Key,
		} {
			if bytes.Contains(got.all, secret) {
				t.Errorf("it is sent the %s", name)
			}
		}
		if !bytes.Contains(got.all, []byte("the secret of own")) {
			t.Error("it is not sent its own secret: the test shows nothing")
		}
	})
	t.Run("its word counts for itself only", func(t *testing.T) {
		if !acknowledged {
			t.Error("its statuses were not taken in: the test shows nothing")
		}
		for task := range m1.tasks() {
			if task.ID == foreign.ID && task.Status.State != swarm.TaskStateRunning {
				t.Errorf("another's task is %s", task.Status.State)
			}
		}
		s, err := m1.Replica()
		if err != nil {
			t.Fatal(err)
		}
		for n := range s.Nodes.All() {
			switch n.ID {
			case thief.NodeID:
				if n.Spec.Role != swarm.NodeRoleWorker || n.ManagerStatus != nil || n.RaftID != "" || len(n.Spec.Labels) > 0 || n.Spec.Availability != swarm.NodeAvailabilityActive {
					t.Errorf("it made itself %+v", n)
				}
			case victim:
				if n.Description.Hostname != "w2" || n.Status.State != swarm.NodeStateReady {
					t.Errorf("it changed another node: %+v", n)
				}
			}
		}
	})
	t.Run("it opens nobody's streams", func(t *testing.T) {
		for _, path := range []string{"/streams/" + own.ID, "/streams/x", "/nodes/" + victim + "/connect", "/m/v1/nodes/" + victim + "/connect", "/../m/v1/nodes/" + victim + "/connect"} {
			c, err := d.Stream(t.Context(), at, path)
			if err != nil {
				continue
			}
			// Some are refused after the beginning.
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%s: opened", path)
			}
			c.Close()
		}
	})
	t.Run("it calls no manager's routes", func(t *testing.T) {
		for _, path := range []string{"/propose", "/readindex", "/../m/v1/readindex", "/%2e%2e/m/v1/readindex", "/join"} {
			if a, err := control.Call[struct{}, struct{}](t.Context(), d, at, path, &struct{}{}); err == nil {
				t.Errorf("%s: answered %+v", path, a)
			}
		}
	})
	t.Run("it is nobody else", func(t *testing.T) {
		for _, name := range []string{victim, at.NodeID} {
			liar := thief
			liar.NodeID = name
			if c, err := worker(t, &liar).Stream(t.Context(), at, "/session"); err == nil || !strings.Contains(err.Error(), "has the certificate of node") {
				t.Errorf("as %s: %v, %v", name, c, err)
			}
		}
	})
	t.Run("its certificate says what the swarm says", func(t *testing.T) {
		reply, err := control.Call[wire.RenewRequest, wire.RenewReply](t.Context(), d, at, "/renew", &wire.RenewRequest{CSR: greedy(t, at.NodeID, cluster.ID)})
		if err != nil {
			t.Fatal(err)
		}
		chain, err := pki.ParseChain(reply.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		leaf := chain[0]
		n, err := pki.Subject(leaf)
		if err != nil || n.ID != thief.NodeID || n.Role != pki.Worker || reply.Role != swarm.NodeRoleWorker {
			t.Errorf("it is now %+v, %v", n, err)
		}
		if leaf.IsCA || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(leaf.DNSNames, "swarm-manager") || len(leaf.IPAddresses) > 0 {
			t.Errorf("its certificate is good for more: %+v", leaf)
		}
	})
}

// sent is what a node was sent in its session.
type sent struct {
	items []string // kind and name or ID
	all   []byte   // of every message
}

// follow begins a session with lies, takes in what comes until another's task
// was reported as failed and that was acknowledged.
func follow(t *testing.T, conn net.Conn, foreign string) (s sent, acknowledged bool) {
	t.Helper()
	c := wire.NewConn(conn)
	send := func(m *wire.Message) {
		if err := c.Send(m, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	hello := &wire.Hello{Protocol: wire.Protocol, Instance: "x", Member: &wire.Member{RaftID: "evil", Addr: "192.0.2.66:2377"}}
	hello.Description.Hostname = "w2"
	hello.Description.Engine.Labels = map[string]string{"zone": "secret"}
	send(&wire.Message{Hello: hello})
	for !acknowledged {
		m, err := c.Receive(10 * time.Second)
		if err != nil {
			t.Errorf("session: %v", err)
			return s, false
		}
		b, err := object.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		s.all = append(s.all, b...)
		switch {
		case m.Acknowledge != nil:
			acknowledged = m.Acknowledge.Statuses == 1
		case m.Assignments != nil:
			for _, i := range m.Assignments.Items {
				s.items = append(s.items, describe(t, i))
			}
			send(&wire.Message{Acknowledge: &wire.Acknowledge{ResultsIn: m.Assignments.ResultsIn}})
			status := swarm.TaskStatus{State: swarm.TaskStateFailed, Timestamp: time.Now()}
			send(&wire.Message{Statuses: &wire.Statuses{Sequence: 1, Tasks: []wire.TaskStatus{{ID: foreign, Status: status}}}})
		}
	}
	slices.Sort(s.items)
	return s, acknowledged
}

func describe(t *testing.T, i wire.Item) string {
	t.Helper()
	o, err := i.Unpack()
	if err != nil {
		t.Fatal(err)
	}
	switch o := o.(type) {
	case *object.Secret:
		return "secret " + o.Spec.Name
	case *object.Config:
		return "config " + o.Spec.Name
	case *object.Task:
		return "task " + o.ID
	case *object.Revision:
		return "revision " + o.ServiceID
	}
	return string(i.Kind) + " " + i.Key
}

// greedy asks for the certificate of a manager and of an authority.
func greedy(t *testing.T, id, cluster string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: id, OrganizationalUnit: []string{pki.Manager}, Organization: []string{cluster}},
		DNSNames:    []string{"swarm-manager"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},                           // an authority
			{Id: []int{2, 5, 29, 37}, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01}}, // a server
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
