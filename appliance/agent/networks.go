package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"skep/appliance/wire"
	"skep/store/object"
)

const (
	// networksDomain is what the file of the networks is sealed for.
	networksDomain = "agent/networks"
	// networksEvery is how often that file is written at most: a node that starts
	// with an older view is told the newer one by any manager.
	networksEvery = 5 * time.Second
)

// networks is what the agent knows of the networks, from one session to the next.
type networks struct {
	saving sync.Mutex    // held while the file is written, before mu
	news   chan struct{} // size 1: view has changed
	said   chan struct{} // size 1: programmed has changed

	mu   sync.Mutex // guards all below
	port uint16
	// view is what was handed over last, stored what the file has.
	view, stored *wire.NetworkView
	// programmed is what the data plane said in this session and the manager was
	// not told yet, nil if there is nothing.
	programmed *wire.Programmed
}

// beginView is for what a new session says. What was programmed before has no
// meaning for it.
func (a *Agent) beginView() *wire.View {
	n := &a.networks
	n.mu.Lock()
	defer n.mu.Unlock()
	n.programmed = nil
	return wire.NewView(n.view)
}

// networks takes in a part of what the manager says of the networks.
func (s *session) networks(part *wire.Networks) error {
	v, err := s.view.Apply(part)
	if v != nil {
		s.agent.toldNetworks(v)
	}
	return err
}

// toldNetworks hands on a view that nobody else has yet.
func (a *Agent) toldNetworks(v *wire.NetworkView) {
	n := &a.networks
	n.mu.Lock()
	v.Port = n.port
	n.view = v
	n.mu.Unlock()
	signal(n.news)
	if a.cfg.Networks == nil {
		a.Programmed(wire.Programmed{Networks: v.Version})
		return
	}
	a.cfg.Networks(v)
}

// toldPort takes in the data path port, which comes before the networks and
// stays the same for as long as there is the swarm.
func (a *Agent) toldPort(port uint32) {
	n := &a.networks
	n.mu.Lock()
	defer n.mu.Unlock()
	if port <= 1<<16-1 {
		n.port = uint16(port)
	}
}

// Programmed has the manager told that the node's kernel and DNS are as views
// and tunnels of these versions said. It does not block.
func (a *Agent) Programmed(p wire.Programmed) {
	n := &a.networks
	n.mu.Lock()
	defer n.mu.Unlock()
	n.programmed = &p
	signal(n.said)
}

// sayProgrammed is what the manager is to be told, nil if it was told.
func (a *Agent) sayProgrammed() *wire.Programmed {
	n := &a.networks
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.programmed
	n.programmed = nil
	return p
}

// networksContent is the file of the networks.
type networksContent struct {
	Port  uint16
	Parts []*wire.Networks
}

// adoptNetworks goes on with the networks of the file: those of the tasks that
// run on.
func (a *Agent) adoptNetworks(ctx context.Context) {
	v, err := a.loadNetworks()
	if err != nil {
		a.cfg.Logger.ErrorContext(ctx, "stored networks lost", "err", err)
	}
	if v == nil {
		return
	}
	a.networks.mu.Lock()
	a.networks.view, a.networks.stored, a.networks.port = v, v, v.Port
	a.networks.mu.Unlock()
	if a.cfg.Networks != nil {
		a.cfg.Networks(v)
	}
}

func (a *Agent) loadNetworks() (v *wire.NetworkView, err error) {
	a.networks.saving.Lock() // the key that opens it is kept until Reseal is over
	defer a.networks.saving.Unlock()
	if a.cfg.NetworksFile == "" {
		return nil, nil
	}
	sealed, err := os.ReadFile(a.cfg.NetworksFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read networks file: %w", err)
	}
	plain, err := a.cfg.Sealer.Open(networksDomain, sealed)
	if err != nil {
		return nil, fmt.Errorf("open networks file: %w", err)
	}
	var c networksContent
	if err = object.Decode(plain, &c); err != nil {
		return nil, fmt.Errorf("decode networks file: %w", err)
	}
	view := wire.NewView(nil)
	for _, part := range c.Parts {
		if v, err = view.Apply(part); err != nil {
			return nil, fmt.Errorf("decode networks file: %w", err)
		}
	}
	if v != nil {
		v.Port, v.Stored = c.Port, true
	}
	return v, nil
}

// keepNetworks writes the file now and then, and at the end.
func (a *Agent) keepNetworks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), a.saveNetworks())
		case <-a.networks.news:
		}
		if err := a.saveNetworks(); err != nil {
			// A full disk does not end what runs.
			a.cfg.Logger.WarnContext(ctx, "networks not stored", "err", err)
			signal(a.networks.news)
		}
		t := time.NewTimer(networksEvery)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

func (a *Agent) saveNetworks() error {
	n := &a.networks
	n.saving.Lock()
	defer n.saving.Unlock()
	n.mu.Lock()
	v, stored := n.view, n.stored
	n.mu.Unlock()
	if v == stored || a.cfg.NetworksFile == "" {
		return nil
	}
	parts, err := v.Parts()
	if err != nil {
		return fmt.Errorf("encode networks file: %w", err)
	}
	plain, err := object.Encode(networksContent{Port: v.Port, Parts: parts})
	if err != nil {
		return fmt.Errorf("encode networks file: %w", err)
	}
	if err := replace(a.cfg.NetworksFile, a.cfg.Sealer.Seal(networksDomain, plain)); err != nil {
		return fmt.Errorf("write networks file: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stored = v
	return nil
}
