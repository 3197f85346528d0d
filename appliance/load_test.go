package appliance_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// TestLoad_NoRequestFailsWhileTasksComeAndGo updates, scales and restarts a
// service, and the node itself, while clients ask for its page without pause.
func TestLoad_NoRequestFailsWhileTasksComeAndGo(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "load", nodetest.File)
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.Run("service", "create", "--detach=false", "-q", "--update-monitor", "1s", "--name", "web", "--replicas", "3", "-p", "8080:80", "skep/hello")
	l := startLoad(n, 4)
	for _, step := range [][]string{
		{"service", "update", "--detach=false", "-q", "--update-delay", "0s", "--env-add", "A=1", "web"},
		{"service", "update", "--detach=false", "-q", "--update-order", "start-first", "--env-add", "A=2", "web"},
		{"service", "scale", "web=6"},
		{"service", "scale", "web=2"},
	} {
		docker.Run(step...)
		l.report(t, strings.Join(step, " "))
	}
	n.Kill(t)
	l.report(t, "kill of the node")
	n.Start(t)
	docker.Run("service", "update", "--detach=false", "-q", "--force", "web")
	l.report(t, "start of the node and update")
	if asked := l.stop(); asked < 100 {
		t.Errorf("only %d requests were made: the test shows nothing", asked)
	}
	docker.Run("service", "rm", "web")
	eventually(t, "nothing is left", func() bool { return len(n.Leftovers()) == 0 })
	n.Stop(t)
}

// load is clients that ask for a page one request after the other.
type load struct {
	done     chan struct{}
	clients  sync.WaitGroup
	mu       sync.Mutex
	asked    int
	failures []string
}

func startLoad(n *nodetest.Node, clients int) *load {
	l := &load{done: make(chan struct{})}
	for range clients {
		l.clients.Go(func() {
			client := n.Client()
			for {
				select {
				case <-l.done:
					return
				default:
				}
				err := fetch(context.Background(), client, "http://127.0.0.1:8080/slow?ms=20")
				l.mu.Lock()
				l.asked++
				if err != nil {
					l.failures = append(l.failures, time.Now().Format("05.000 ")+err.Error())
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// fetch is nil if the page is answered with 200.
func fetch(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, errors.New(resp.Status))
	}
	return errors.Join(err, resp.Body.Close())
}

func (l *load) report(t *testing.T, what string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) > 0 {
		t.Errorf("%s: %d of %d requests so far failed, as %s", what, len(l.failures), l.asked, l.failures[0])
	}
	l.failures = nil
}

func (l *load) stop() int {
	close(l.done)
	l.clients.Wait()
	return l.asked
}
