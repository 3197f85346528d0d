package dataplane

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
)

const (
	// hearing is how long endpoints and name servers may take to answer.
	hearing = 2 * time.Second
	// questions is how many names are asked for at once.
	questions = 16
)

// asker is from where others are asked; without a path there is nobody.
type asker struct {
	name, path string
	sources    []netip.Addr
	// names: it has a name server.
	names bool
}

// ask asks those who serve, and for their names.
func (p *Plane) ask(ctx context.Context, n *place, by map[string][]takes, f *found) {
	if f.asker.path == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hearing)
	defer cancel()
	var targets []netip.Addr
	names := map[string]bool{}
	for _, list := range by {
		for _, e := range list {
			if e.part == active {
				targets = append(targets, e.Addresses...)
				names[question(n.members, e)] = true
			}
		}
	}
	delete(names, "")
	if !f.asker.names {
		clear(names)
	}
	f.told, f.refused = map[string][]netip.Addr{}, map[string]error{}
	var mu sync.Mutex
	var echoing error
	var g errgroup.Group
	g.SetLimit(questions)
	g.Go(func() error {
		f.echoes, echoing = p.cfg.Echo(ctx, f.asker.path, f.asker.sources, targets)
		return nil
	})
	for name := range names {
		g.Go(func() error {
			addrs, err := p.cfg.Ask(ctx, f.asker.path, name)
			mu.Lock()
			defer mu.Unlock()
			if f.told[name] = addrs; err != nil {
				f.refused[name] = err
			}
			return nil
		})
	}
	_ = g.Wait()
	if echoing != nil {
		f.faults = append(f.faults, echoing.Error())
	}
}

// question is the name that leads to an endpoint among others of its service,
// empty if there is none.
func question(m *wire.NetworkMembers, e takes) string {
	if s, ok := m.Services[e.Service]; ok && s.Name != "" {
		return "tasks." + s.Name
	}
	if e.Service == "" && len(e.Names) > 0 {
		return e.Names[0]
	}
	return ""
}
