package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/go-digest"

	"skep/appliance/manager/allocator"
	"skep/store"
	"skep/store/object"
)

// orchestrate is the least that a swarm does beside allocating: it makes tasks
// for services until ctx ends, lets those run that have all that they need, and
// removes those that are of another revision.
func (m *manager) orchestrate(ctx context.Context) {
	for after := uint64(0); ; {
		ch := m.store.Since(after)
		after = ch.Snapshot.Index
		tx := store.Begin(ch.Snapshot)
		for o := range ch.Snapshot.Services.All() {
			m.reconcile(ch.Snapshot, tx, o)
		}
		for task := range ch.Snapshot.Tasks.All() {
			if _, ok := ch.Snapshot.Services.Get(task.ServiceID); !ok {
				tx.Delete(task)
			}
		}
		if !tx.Empty() {
			// A change that came first is seen in the next round.
			if _, err := m.store.Propose(ctx, tx); err == nil {
				continue
			}
		}
		select {
		case <-ch.News:
		case <-ctx.Done():
			return
		}
	}
}

// live runs what a leading manager runs, until ctx ends.
func (m *manager) live(ctx context.Context, loops *sync.WaitGroup) {
	loops.Go(func() { m.orchestrate(ctx) })
	loops.Go(func() { _ = allocator.Run(ctx, m.store) })
	loops.Go(func() { _ = m.events.Watch(ctx, m.store) })
}

func (m *manager) reconcile(s *store.Snapshot, tx *store.Tx, o *object.Service) {
	slots := map[int]bool{}
	want := 1
	if r := o.Spec.Mode.Replicated; r != nil {
		want = int(*r.Replicas)
	}
	for task := range s.Tasks.By(store.ByService, o.ID) {
		if task.SpecVersion != o.SpecVersion || task.Slot > want {
			tx.Delete(task)
			continue
		}
		slots[task.Slot] = true
		if task.Status.State == swarm.TaskStatePending {
			task = task.Clone().(*object.Task)
			task.Status = swarm.TaskStatus{State: swarm.TaskStateRunning, Message: "started", Timestamp: time.Now(), ContainerStatus: &swarm.ContainerStatus{ContainerID: "c" + task.ID}}
			tx.Update(task)
		}
	}
	for slot := 1; slot <= want; slot++ {
		if !slots[slot] {
			tx.Create(&object.Task{
				ID: object.NewID(), ServiceID: o.ID, SpecVersion: o.SpecVersion, Slot: slot, NodeID: m.nodeID, DesiredState: swarm.TaskStateRunning,
				Status: swarm.TaskStatus{State: swarm.TaskStateNew, Message: "created", Timestamp: time.Now()},
			})
		}
	}
}

func TestDocker_DrivesTheSwarm(t *testing.T) {
	m := newManager(t)
	m.images.digests["nginx:latest"] = digest.FromString("nginx")
	m.images.digests["nginx:2"] = digest.FromString("two")
	dir := t.TempDir()
	secret, stack := filepath.Join(dir, "secret"), filepath.Join(dir, "stack.yml")
	for path, text := range map[string]string{
		secret: "hush",
		stack:  "version: '3.8'\nservices:\n  one:\n    image: nginx\n    networks: [hostnet]\n    secrets: [sec]\nnetworks:\n  hostnet: {external: true, name: host}\nsecrets:\n  sec: {file: " + secret + "}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	defer func() { cancel(); loops.Wait() }()
	tests := []struct {
		args, stdout, stderr string // parts of what is printed
		code                 int
	}{
		{args: "service ls", stderr: "This node is not a swarm manager.", code: 1},
		{args: "swarm init --advertise-addr 192.168.78.1", stdout: " swarm join --token SWMTKN-1-worker 192.168.78.1:2377"},
		{args: "swarm init", stderr: "This node is already part of a swarm.", code: 1},
		{args: "info --format {{.Swarm.LocalNodeState}},{{.Swarm.Nodes}},{{.Swarm.Managers}}", stdout: "active,1,1\n"},
		{args: "swarm join-token -q manager", stdout: "SWMTKN-1-manager\n"},
		{args: "swarm join-token --rotate -q worker", stdout: "SWMTKN-1-"},
		{args: "swarm update --task-history-limit 3 --cert-expiry 720h", stdout: "Swarm updated."},
		{args: "swarm ca", stdout: "-----BEGIN CERTIFICATE-----"},
		{args: "swarm ca --rotate --detach"},
		{args: "swarm update --cert-expiry 59m", stderr: "minimum certificate expiry time is: 1h0m0s", code: 1},
		{args: "swarm unlock-key -q", stderr: "no unlock key is set", code: 1},
		{args: "swarm unlock-key --rotate", stderr: "cannot rotate because autolock is not turned on", code: 1},
		{args: "swarm update --autolock", stdout: "SWMKEY-1-"},
		{args: "swarm unlock-key -q", stdout: "SWMKEY-1-"},
		{args: "swarm unlock-key --rotate", stdout: "SWMKEY-1-"},
		{args: "swarm update --autolock=false", stdout: "Swarm updated."},
		{args: "swarm unlock-key -q", stderr: "no unlock key is set", code: 1},
		{args: "swarm unlock", stderr: "swarm is not locked", code: 1},
		{args: "node ls --format {{.Hostname}},{{.Self}},{{.ManagerStatus}}", stdout: "node1,true,Leader\n"},
		{args: "node update --label-add zone=a --availability drain node1", stdout: "node1\n"},
		{args: "node inspect --format {{.Spec.Labels.zone}},{{.Spec.Availability}} self", stdout: "a,drain\n"},
		{args: "node inspect --pretty node1", stdout: "Leader:\t\tYes"},
		{args: "node demote node1", stderr: "attempting to demote the last manager of the swarm", code: 1},
		{args: "node rm node1", stderr: "must be demoted to worker before removal", code: 1},
		{args: "secret create --label a=b sec1 " + secret},
		{args: "secret create sec1 " + secret, stderr: "secret sec1 already exists", code: 1},
		{args: "secret ls --filter name=sec1 --format {{.Name}}", stdout: "sec1\n"},
		{args: "secret inspect --pretty sec1", stdout: "Name:              sec1"},
		{args: "config create cfg1 " + secret},
		{args: "config inspect --pretty cfg1", stdout: "hush"},
		{args: "service create --name web --replicas 2 -p 8080:80 --secret sec1 --config source=cfg1,target=/c --update-monitor 1s nginx", stdout: "converged\n"},
		{args: "service ls --format {{.Name}},{{.Mode}},{{.Replicas}},{{.Image}}", stdout: "web,replicated,2/2,nginx:latest\n"},
		{args: "service ps --format {{.Name}},{{.Node}},{{.DesiredState}} web", stdout: "web.1,node1,Running"},
		{args: "service logs web", stdout: "@node1    | hello", stderr: "@node1    | oh no"},
		{args: "service logs --raw --tail 1 -t web", stderr: "1970-01-01T00:00:02.000000000Z oh no\n"},
		{args: "service logs --details --no-trunc --no-resolve web", stdout: "hello"},
		{args: "service logs --no-task-ids web", stdout: "web.1@node1"},
		{args: "version", stdout: "API version:      1.51 (minimum version 1.24)"},
		{args: "info", stdout: "Is Manager: true"},
		{args: "events --since 0 --until 0s --filter service=web --format {{.Type}}.{{.Action}}", stdout: "service.create\n"},
		{args: "system events --since 0 --until 0s --filter type=secret", stdout: "secret create "},
		{args: "login -u u -p right reg.example:5000", stdout: "Login Succeeded"},
		{args: "service inspect --pretty web", stdout: "Service Mode:\tReplicated"},
		{args: "service update --image nginx:2 --update-monitor 1s web", stdout: "converged\n"},
		{args: "service scale web=3", stdout: "converged\n"},
		{args: "service ls --format {{.Replicas}},{{.Image}}", stdout: "3/3,nginx:2\n"},
		{args: "service rollback -d web", stdout: "web\n"},
		{args: "service rollback -d web", stdout: "web\n"},
		{args: "service update -d --rollback web", stdout: "web\n"},
		{args: "service update -d --env-add X=y --label-add l=m --limit-memory 64m web", stdout: "web\n"},
		{args: "service update -d --secret-rm sec1 --config-rm cfg1 web", stdout: "web\n"},
		{args: "service create -d --name other -p 8080:80 nginx", stderr: "port '8080' is already in use by service 'web'", code: 1},
		{args: "service create -d --name job --mode replicated-job nginx", stderr: "jobs are not supported yet", code: 1},
		{args: "service create -d --name un unknown", stderr: "could not be accessed on a registry"},
		{args: "service create -d --name un --no-resolve-image nginx", stderr: "service un already exists", code: 1},
		{args: "service create -d --name g --mode global --network host --constraint node.role==manager --mount type=volume,source=v,target=/v --health-cmd true --cap-add NET_ADMIN nginx a b"},
		{args: "node ps --format {{.Name}} node1", stdout: "web.1"},
		{args: "inspect --type service --format {{.Spec.Name}} g", stdout: "g\n"},
		{args: "service rm web g un", stdout: "web\ng\nun\n"},
		{args: "service rm web", stderr: "service web not found", code: 1},
		{args: "stack deploy -c " + stack + " st1", stdout: "Creating service st1_one"},
		{args: "stack deploy -c " + stack + " st1", stdout: "Updating service st1_one"},
		{args: "stack ls --format {{.Name}},{{.Services}}", stdout: "st1,1\n"},
		{args: "stack ps --format {{.Name}} st1", stdout: "st1_one.1\n"},
		{args: "stack services --format {{.Name}} st1", stdout: "st1_one\n"},
		{args: "stack rm st1", stdout: "Removing service st1_one"},
		{args: "secret rm sec1", stdout: "sec1\n"},
		{args: "config rm cfg1", stdout: "cfg1\n"},
		{args: "swarm leave", stderr: "Use `--force` to ignore this message.", code: 1},
		{args: "swarm leave --force", stdout: "Node left the swarm."},
	}
	n := &node{socket: m.socket}
	for _, tt := range tests {
		stdout, stderr, code := n.docker(t, "", strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("docker %s: code %d, stdout %q, stderr %q;\nwant %d, %q, %q", tt.args, code, stdout, stderr, tt.code, tt.stdout, tt.stderr)
		}
		if strings.HasPrefix(tt.args, "service create --name web") {
			for task := range m.store.Snapshot().Tasks.All() {
				m.logs.add(task.ID, line(1, "hello\n"), object.LogLine{Time: time.Unix(2, 0), Stderr: true, Text: []byte("oh no\n")})
			}
		}
		if strings.HasPrefix(tt.args, "swarm init --adv") {
			if m.store == nil {
				t.Fatal("there is no swarm")
			}
			m.live(ctx, &loops)
		}
	}
}
