package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/admin/engine"
	"skep/store"
	"skep/store/object"
)

// inSwarm is a node that knows its ID and nothing else of its swarm.
type inSwarm struct {
	engine.Swarm
	id string
}

func (s inSwarm) Info(context.Context) swarm.Info { return swarm.Info{NodeID: s.id} }
func (inSwarm) Replica() (*store.Snapshot, error) {
	return nil, object.Errorf(errdefs.ErrUnavailable, "%s", notManager)
}

// pipes is a listener of connections in memory, which have no half-close.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error { close(p); return nil }
func (pipes) Addr() net.Addr { return &net.UnixAddr{} }

// farLogs reads the logs of the pair's task.
type farLogs struct{ *pair }

func (f farLogs) TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	if task.ID != f.task.ID {
		panic("the log of task " + task.ID)
	}
	return f.far.Logs(ctx, f.box.id, q)
}

// pair is two managers and a worker with a task and a container of its own.
type pair struct {
	near, other, far *node
	members          *membership
	task             *object.Task
	box              *proc // the task's container, on far
	name             string
	connect          error // what connecting to far gives, if not nil
}

func newPair(t *testing.T, cmd ...string) *pair {
	t.Helper()
	return newPairWith(t, func(*engine.Config) {}, cmd...)
}

// newPairWith is a pair whose worker is changed.
func newPairWith(t *testing.T, change func(*engine.Config), cmd ...string) *pair {
	t.Helper()
	p := &pair{members: &membership{tb: t}}
	if _, err := p.members.Init(t.Context(), swarm.InitRequest{}); err != nil {
		t.Fatal(err)
	}
	worker := &object.Node{Node: swarm.Node{ID: object.NewID(), Description: swarm.NodeDescription{Hostname: "w1"}, Status: swarm.NodeStatus{State: swarm.NodeStateReady}}}
	service := &object.Service{Service: swarm.Service{ID: object.NewID()}}
	service.Spec.Name = "web"
	p.task = &object.Task{ID: object.NewID(), ServiceID: service.ID, Slot: 1, NodeID: worker.ID, DesiredState: swarm.TaskStateRunning}
	p.name = "web.1." + p.task.ID

	p.far = newNodeWith(t, func(c *engine.Config) {
		c.Swarm = inSwarm{id: worker.ID}
		c.Connect = func(context.Context, string) (net.Conn, error) {
			t.Error("a worker connects to another node")
			return nil, errors.New("no")
		}
		change(c)
	})
	peers := p.serve(t, p.far)
	manage := func(c *engine.Config) {
		c.Swarm = p.members
		c.TaskLogs = farLogs{p}
		c.Connect = func(_ context.Context, node string) (net.Conn, error) {
			if node != worker.ID || p.connect != nil {
				return nil, errors.Join(p.connect)
			}
			here, there := net.Pipe()
			peers <- there
			return here, nil
		}
	}
	p.near, p.other = newNodeWith(t, manage), newNodeWith(t, manage)
	if len(cmd) == 0 {
		cmd = []string{"sleep"}
	}
	p.box = p.startOn(t, p.far, p.name, map[string]string{"com.docker.swarm.task.id": p.task.ID}, cmd...)
	p.task.Status = swarm.TaskStatus{State: swarm.TaskStateRunning, ContainerStatus: &swarm.ContainerStatus{ContainerID: p.box.id}}
	p.members.store.Write(t, func(tx *store.Tx) {
		tx.Create(worker)
		tx.Create(service)
		tx.Create(p.task)
	})
	return p
}

// serve is what n serves to managers.
func (p *pair) serve(t *testing.T, n *node) pipes {
	t.Helper()
	mux, err := admin.NewMux(admin.MuxConfig{Routes: n.api.PeerRoutes(), Audit: n.audit, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	versioned := n.api.Versioned(mux)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		versioned.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), engine.FromManager(r))))
	})}
	l := make(pipes)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return l
}

func (p *pair) startOn(t *testing.T, n *node, name string, labels map[string]string, cmd ...string) *proc {
	t.Helper()
	req := container.CreateRequest{Config: &container.Config{Image: "base", Cmd: cmd, Labels: labels}, HostConfig: &container.HostConfig{}}
	if _, err := n.Create(t.Context(), name, req); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	box, err := n.find(name)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// exec makes an exec by way of n.
func (p *pair) exec(t *testing.T, n *node, cmd ...string) string {
	t.Helper()
	body, err := json.Marshal(container.ExecCreateRequest{Cmd: cmd, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	status, text := n.call(t, "POST /containers/"+p.name+"/exec", string(body))
	var created container.ExecCreateResponse
	if err := json.Unmarshal([]byte(text), &created); err != nil || status != http.StatusCreated {
		t.Fatalf("create exec: %d %s", status, text)
	}
	return created.ID
}

func TestRemote_ReadsTheContainersOfTasksOnOtherNodes(t *testing.T) {
	p := newPair(t, "both")
	<-p.box.ended
	for _, ref := range []string{p.name, p.box.id, p.box.id[:12]} {
		status, text := p.near.call(t, "GET /containers/"+ref+"/json", "")
		var c container.InspectResponse
		if err := json.Unmarshal([]byte(text), &c); err != nil || status != 200 || c.ID != p.box.id || c.Name != "/"+p.name {
			t.Errorf("inspect %s: %d %s", ref, status, text)
		}
		if status, text = p.near.call(t, "GET /containers/"+ref+"/top", ""); status != 200 || !strings.Contains(text, `["root","1","sleep"]`) {
			t.Errorf("top %s: %d %s", ref, status, text)
		}
		if status, text = p.near.call(t, "GET /containers/"+ref+"/stats?stream=0", ""); status != 200 || !strings.Contains(text, p.box.id) {
			t.Errorf("stats %s: %d %s", ref, status, text)
		}
		if status, text = p.near.call(t, "POST /containers/"+ref+"/wait", ""); status != 200 || text != `{"StatusCode":0}` {
			t.Errorf("wait %s: %d %s", ref, status, text)
		}
	}
	for _, ref := range []string{p.name, p.task.ID} {
		_, text := p.near.call(t, "GET /v1.51/containers/"+ref+"/logs?stdout=1&stderr=1&follow=1", "")
		var stdout, stderr bytes.Buffer
		if _, err := stdcopy.StdCopy(&stdout, &stderr, strings.NewReader(text+"\n")); err != nil || stdout.String() != "out\n" || stderr.String() != "err\n" {
			t.Errorf("logs of %s: %q, %q, %v", ref, stdout.String(), stderr.String(), err)
		}
	}
	for _, ref := range []string{p.task.ID, p.box.id[:11], "web.1", "web.2." + p.task.ID, "nosuch"} {
		status, text := p.near.call(t, "GET /containers/"+ref+"/json", "")
		if want := fmt.Sprintf(`{"message":"No such container: %s"}`, ref); status != 404 || text != want {
			t.Errorf("inspect %s: %d %s", ref, status, text)
		}
	}
	if status, text := p.near.call(t, "GET /containers/"+p.name+"/logs?stdout=0", ""); status != 400 || !strings.Contains(text, "must specify at least one") {
		t.Errorf("the node's refusal: %d %s", status, text)
	}
}

func TestRemote_ExecByAnyManager(t *testing.T) {
	p := newPair(t)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<14)
	id := p.exec(t, p.near, "cat")
	c, r, resp := p.other.hijack(t, "POST /v1.51/exec/"+id+"/start", "{}")
	if resp.Status != "101 UPGRADED" || resp.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Fatalf("got %s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	go func() {
		_, _ = c.Write(big)
		_ = c.CloseWrite()
	}()
	var stdout bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, io.Discard, r); err != nil || !bytes.Equal(stdout.Bytes(), big) {
		t.Errorf("cat returned %d bytes of %d, %v", stdout.Len(), len(big), err)
	}
	for _, n := range []*node{p.near, p.other} {
		status, text := n.call(t, "GET /exec/"+id+"/json", "")
		var e container.ExecInspectResponse
		if err := json.Unmarshal([]byte(text), &e); err != nil || status != 200 || e.ID != id || e.ContainerID != p.box.id || e.ExitCode == nil || *e.ExitCode != 0 {
			t.Errorf("inspect: %d %s", status, text)
		}
	}
	if status, text := p.near.call(t, "POST /exec/"+id+"/resize?h=10&w=20", ""); status != 200 {
		t.Errorf("resize: %d %s", status, text)
	}
	// What ends by itself ends the stream, though the client sends on.
	_, r, _ = p.near.hijack(t, "POST /exec/"+p.exec(t, p.other, "echo", "hi")+"/start?plain=1", "{}")
	if got, err := io.ReadAll(r); err != nil || string(got) != "\x01\x00\x00\x00\x00\x00\x00\x03hi\n" {
		t.Errorf("echo wrote %q, %v", got, err)
	}
	id = p.exec(t, p.near, "exit")
	if status, text := p.near.call(t, "POST /exec/"+id+"/start", `{"Detach":true}`); status != 200 {
		t.Errorf("detached: %d %s", status, text)
	}
	eventuallyContains(t, p.near, "GET /exec/"+id+"/json", `"ExitCode":7`)
	if _, _, resp = p.near.hijack(t, "POST /exec/"+id+"/start", "{}"); resp.StatusCode != http.StatusConflict {
		t.Errorf("started twice: %s", resp.Status)
	}
}

func eventuallyContains(t *testing.T, n *node, methodPath, want string) {
	t.Helper()
	var text string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, text = n.call(t, methodPath, ""); strings.Contains(text, want) {
			return
		}
	}
	t.Errorf("%s: %s has no %s", methodPath, text, want)
}

func TestRemote_Attach(t *testing.T) {
	p := newPair(t, "prompt")
	_, r, resp := p.near.hijack(t, "POST /containers/"+p.name+"/attach?stream=1&stdout=1&stdin=1", "")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %s", resp.Status)
	}
	frame := make([]byte, 10)
	if _, err := io.ReadFull(r, frame); err != nil || string(frame) != "\x01\x00\x00\x00\x00\x00\x00\x02? " {
		t.Errorf("got %q, %v", frame, err)
	}
	p.box.cancel()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
}

func TestRemote_SaysWhichNodeIsNotThere(t *testing.T) {
	p := newPair(t)
	id := p.exec(t, p.near, "cat")
	all := []string{
		"GET /containers/" + p.name + "/json", "GET /containers/" + p.name + "/top",
		"GET /containers/" + p.name + "/stats", "POST /containers/" + p.name + "/wait", "POST /containers/" + p.name + "/attach?stream=1&stdout=1",
		"POST /exec/" + id + "/start", "GET /exec/" + id + "/json",
	}
	check := func(want string) {
		t.Helper()
		for _, methodPath := range all {
			body := ""
			if strings.Contains(methodPath, "start") {
				body = "{}"
			}
			if status, text := p.near.call(t, methodPath, body); status != 503 || text != `{"message":"`+want+`"}` {
				t.Errorf("%s: %d %s, want %s", methodPath, status, text, want)
			}
		}
	}
	p.connect = object.Errorf(errdefs.ErrNotFound, "it has no session")
	check("node w1 is not available: it has no session")
	p.connect = context.DeadlineExceeded
	check("node w1 is not available: it does not answer")
	p.connect = errors.New("must not be asked")
	p.members.store.Write(t, func(tx *store.Tx) {
		n, _ := p.members.store.Snapshot().Nodes.Get(p.task.NodeID)
		n = n.Clone().(*object.Node)
		n.Status.State = swarm.NodeStateDown
		tx.Update(n)
	})
	all = append(all, "GET /containers/"+p.name+"/logs?stdout=1&follow=1")
	check("node w1 is not available: it is down")
}

func TestRemote_OnlyThoseWhoMayOnlyWhatIsATasks(t *testing.T) {
	p := newPair(t)
	private := p.startOn(t, p.far, "private", nil, "sleep")
	id, err := p.far.CreateExec(t.Context(), private.id, container.ExecCreateRequest{Cmd: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	// Even if a manager is made to believe that it is a task's.
	p.members.store.Write(t, func(tx *store.Tx) {
		tx.Create(&object.Task{ID: object.NewID(), ServiceID: p.task.ServiceID, Slot: 2, NodeID: p.task.NodeID, Status: swarm.TaskStatus{
			ContainerStatus: &swarm.ContainerStatus{ContainerID: private.id},
		}})
	})
	for _, methodPath := range []string{
		"GET /containers/" + private.id + "/json", "POST /containers/" + private.id + "/exec",
		"GET /exec/" + p.task.NodeID + "-" + id + "/json", "POST /exec/" + p.task.NodeID + "-" + id + "/start",
	} {
		body := ""
		if strings.HasPrefix(methodPath, "POST") {
			body = `{"Cmd":["echo"]}`
		}
		if status, text := p.near.call(t, methodPath, body); status != 404 || !strings.Contains(text, "No such container") {
			t.Errorf("%s: %d %s", methodPath, status, text)
		}
	}
	// There are no other routes at all.
	for _, methodPath := range []string{
		"POST /containers/" + p.name + "/kill", "POST /containers/" + p.name + "/start",
		"POST /containers/" + p.name + "/rename?name=x", "DELETE /containers/" + p.name,
	} {
		if status, text := p.near.call(t, methodPath, ""); status != 404 {
			t.Errorf("%s: %d %s", methodPath, status, text)
		}
	}
	for _, role := range []admin.Role{admin.Viewer, admin.Operator} {
		p.near.role = role
		for _, methodPath := range []string{"POST /containers/" + p.name + "/exec", "POST /containers/" + p.name + "/attach", "POST /exec/" + p.task.NodeID + "-x/start"} {
			if status, _ := p.near.call(t, methodPath, "{}"); status != 403 {
				t.Errorf("%s as %s: %d", methodPath, role, status)
			}
		}
		if status, _ := p.near.call(t, "GET /containers/"+p.name+"/json", ""); status != 200 {
			t.Errorf("inspect as %s: %d", role, status)
		}
	}
}

func TestRemote_IsOnRecordOnBothNodes(t *testing.T) {
	p := newPair(t)
	p.exec(t, p.near, "echo")
	last := func(n *node) (found admin.Record) {
		err := admin.ReadAudit(n.records, openSealer{}, func(r admin.Record) error {
			found = r
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	near, far := last(p.near), last(p.far)
	if near.Principal != "test" || near.Pattern != "POST /containers/{id}/exec" || near.Status != 201 {
		t.Errorf("here: %+v", near)
	}
	if far.Principal != "manager "+p.members.nodeID || far.Transport != "swarm" || far.Detail != "unix test (admin)" || far.Pattern != near.Pattern {
		t.Errorf("there: %+v", far)
	}
}

func TestRemote_ANodeMayKeepItsContainersToItself(t *testing.T) {
	p := newPairWith(t, func(c *engine.Config) { c.LocalExecOnly = true })
	for _, methodPath := range []string{"POST /containers/" + p.name + "/exec", "POST /containers/" + p.name + "/attach?stream=1"} {
		if status, text := p.near.call(t, methodPath, `{"Cmd":["echo"]}`); status != 403 || !strings.Contains(text, "admin.local_exec_only") {
			t.Errorf("%s: %d %s", methodPath, status, text)
		}
	}
	if status, _ := p.near.call(t, "GET /containers/"+p.name+"/json", ""); status != 200 {
		t.Errorf("inspect: %d", status)
	}
	if status, text := p.far.call(t, "POST /containers/"+p.name+"/exec", `{"Cmd":["echo"]}`); status != 201 {
		t.Errorf("on the node itself: %d %s", status, text)
	}
}

// TestPeerRoutes_AreTheTableInReview keeps what managers may do to a node short.
func TestPeerRoutes_AreTheTableInReview(t *testing.T) {
	var got []string
	for _, r := range newNode(t).api.PeerRoutes() {
		got = append(got, r.Pattern)
	}
	want := "GET /containers/{id}/json GET /containers/{id}/top GET /containers/{id}/stats " +
		"POST /containers/{id}/wait POST /containers/{id}/attach POST /containers/{id}/resize POST /containers/{id}/exec " +
		"POST /exec/{id}/start POST /exec/{id}/resize GET /exec/{id}/json GET /skep/networks/{id}/check"
	if strings.Join(got, " ") != want {
		t.Errorf("got %s", strings.Join(got, " "))
	}
}
