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
}

func (b *box) Inspect(context.Context, string, bool) (container.InspectResponse, error) {
	state := b.state
	return container.InspectResponse{ID: "box", State: &state, Config: &b.config}, nil
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
