package appliance_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

var kills = flag.Int("kills", 100, "how often TestCrash_LosesNoAcknowledgedWrite kills the node")

// TestCrash_LosesNoAcknowledgedWrite kills the node at random moments, boot
// included, while clients write.
func TestCrash_LosesNoAcknowledgedWrite(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "crash", nodetest.File)
	w := &writer{url: "http://skep", client: n.API(), acked: map[string]bool{}}
	for round := range *kills {
		n.Launch(t)
		stop := make(chan struct{})
		var writers sync.WaitGroup
		for k := range 4 {
			writers.Go(func() { w.run(round, k, stop) })
		}
		// Most rounds end while the node serves, some while it boots.
		time.Sleep(time.Duration(50+rand.IntN(700)) * time.Millisecond)
		n.Kill(t)
		close(stop)
		writers.Wait()
		w.client.CloseIdleConnections()
	}
	n.Start(t)
	have := w.list(t)
	for name := range w.acked {
		if !have[name] {
			t.Errorf("lost %s", name)
		}
	}
	t.Logf("%d kills, %d acknowledged writes", *kills, len(w.acked))
	if len(w.acked) < *kills {
		t.Errorf("only %d writes were acknowledged: the test shows nothing", len(w.acked))
	}
	n.Stop(t)
}

// writer creates configs and remembers those that were acknowledged.
type writer struct {
	url    string
	client *http.Client
	mu     sync.Mutex
	acked  map[string]bool
}

func (w *writer) run(round, k int, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("c-%d-%d-%d", round, k, i)
		if w.create(name) != nil {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		w.mu.Lock()
		w.acked[name] = true
		w.mu.Unlock()
	}
}

func (w *writer) create(name string) error {
	body, err := json.Marshal(map[string]any{"Name": name, "Data": []byte(name)})
	if err != nil {
		return err
	}
	resp, err := w.client.Post(w.url+"/configs/create", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}

func (w *writer) list(t *testing.T) map[string]bool {
	t.Helper()
	resp, err := w.client.Get(w.url + "/configs")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var configs []struct{ Spec struct{ Name string } }
	if err := json.NewDecoder(resp.Body).Decode(&configs); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, c := range configs {
		have[c.Spec.Name] = true
	}
	return have
}
