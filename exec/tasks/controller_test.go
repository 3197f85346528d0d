package tasks

import (
	"context"
	"log/slog"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
)

// box is a container that runs in this process, as far as sockets tell.
type box struct {
	Containers
	state  container.State
	config container.Config
	// health, if not nil, is what its checks say; it ends when it is stopped.
	health func() container.HealthStatus
}

func (b *box) Inspect(context.Context, string, bool) (container.InspectResponse, error) {
	state := b.state
	if b.health != nil {
		state.Health = &container.Health{Status: b.health()}
	}
	return container.InspectResponse{ID: "box", State: &state, Config: &b.config}, nil
}

func (b *box) Stop(context.Context, string, string, *time.Duration) error {
	b.state.Running, b.state.Status, b.state.ExitCode = false, container.StateExited, 143
	return nil
}

// controller is that of a task that publishes a port in the routing mesh.
func controller(t *testing.T, b *box, port uint32) *Controller {
	t.Helper()
	b.state.Running, b.state.Status, b.state.Pid = true, container.StateRunning, os.Getpid()
	a := assignment()
	a.Task.Ports = []swarm.PortConfig{{Protocol: "tcp", TargetPort: port, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress}}
	x := &Executor{Containers: b, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	c, err := x.Controller(a)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// socket listens on a port of its own until the test ends.
func socket(t *testing.T) (port uint32, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = l.Close() }
	t.Cleanup(stop)
	return uint32(l.Addr().(*net.TCPAddr).Port), stop
}

func TestStart_WaitsUntilTheTaskListens(t *testing.T) {
	open, _ := socket(t)
	closed, stop := socket(t)
	stop()
	checked := container.Config{Healthcheck: &container.HealthConfig{Test: []string{"CMD", "true"}}}
	for _, tt := range []struct {
		name string
		box  *box
		port uint32
		want time.Duration
	}{
		{"it listens", &box{}, open, 0},
		{"it never listens", &box{}, closed, 10 * time.Second},
		{"it is healthy, whatever it listens on", &box{config: checked, state: container.State{Health: &container.Health{Status: container.Healthy}}}, closed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := controller(t, tt.box, tt.port)
				began := time.Now()
				if err := c.Start(t.Context()); err != nil || time.Since(began) != tt.want {
					t.Errorf("after %v: %v; want %v", time.Since(began), err, tt.want)
				}
				c.a.Task.Ports[0].PublishMode = swarm.PortConfigPublishModeHost
				began = time.Now()
				if err := c.Start(t.Context()); err != nil || time.Since(began) != tt.want {
					t.Errorf("on its node's port, after %v: %v; want %v", time.Since(began), err, tt.want)
				}
			})
		})
	}
}

// A task runs from when it is healthy on; one that never is ends.
func TestStart_WaitsUntilTheTaskIsHealthy(t *testing.T) {
	for _, tt := range []struct {
		then   container.HealthStatus
		failed string
	}{
		{container.Healthy, ""},
		{container.Unhealthy, "task: non-zero exit (143): dockerexec: unhealthy container"},
	} {
		t.Run(string(tt.then), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				open, _ := socket(t)
				began := time.Now()
				b := &box{config: container.Config{Healthcheck: &container.HealthConfig{Test: []string{"CMD", "true"}}}}
				b.health = func() container.HealthStatus {
					if time.Since(began) < time.Minute {
						return container.Starting
					}
					return tt.then
				}
				failed := ""
				if err := controller(t, b, open).Start(t.Context()); err != nil {
					failed = err.Error()
				}
				if took := time.Since(began); took != time.Minute || failed != tt.failed || b.state.Running == (failed != "") {
					t.Errorf("after %v: %q, runs: %v", took, failed, b.state.Running)
				}
			})
		})
	}
}

func TestStart_DoesNotWaitForATaskThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &box{}
		c := controller(t, b, 1)
		b.state.Running, b.state.Status = false, container.StateExited
		if err := c.Start(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
