package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
	"skep/net/ingress"
)

const (
	// look is how often the kernel is compared with what it is to be.
	look = time.Minute
	// What fails is tried again after soonest, then ever later.
	soonest = time.Second
	latest  = 30 * time.Second
	// atOnce is how many containers are worked on at once.
	atOnce = 8
)

// Run follows what is set until ctx ends. What fails is logged and tried again.
func (p *Plane) Run(ctx context.Context) error {
	check := time.NewTicker(look)
	defer check.Stop()
	retry := time.NewTimer(settling) // a first view that was held back
	defer retry.Stop()
	wait := soonest
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			p.repair(ctx)
			continue
		case <-p.news:
		case <-retry.C:
		}
		err := p.apply(ctx)
		p.followed(err)
		if err == nil {
			wait = soonest
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		p.cfg.Logger.WarnContext(ctx, "did not make networks as they are to be", "err", err)
		retry.Reset(wait)
		wait = min(2*wait, latest)
	}
}

// apply makes everything as it is to be and acknowledges that.
//
// What is new can be sent to before anything leads to it, and what goes is led
// to by nothing before it cannot be sent to any more. Containers that connect
// meanwhile follow the same plan, see [Plane.Connect].
func (p *Plane) apply(ctx context.Context) error {
	defer p.endTurn(p.beginTurn())
	in, last, ok := p.input()
	if !ok {
		return nil
	}
	errs := []error{p.protect(ctx, &in, last)}
	next := plan(last, in)
	list, more := transition(last, next)
	errs = append(errs, p.cfg.Overlay.Set(ctx, list))
	members := p.replace(next)
	errs = append(errs, eachMember(members, func(m *member) error { return m.follow(ctx, p, next) }))
	errs = append(errs, p.setMesh(ctx, next))
	p.cfg.DNS.Set(next.names())
	errs = append(errs, eachMember(members, func(m *member) error { return m.resolve(ctx, p) }))
	if more {
		errs = append(errs, p.cfg.Overlay.Set(ctx, next.overlays()))
	}
	errs = append(errs, p.unprotect(ctx, next))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if in.view != nil {
		p.cfg.Acked(wire.Programmed{
			Networks: in.view.Version, Tunnels: next.has(), Leaving: slices.Sorted(maps.Keys(in.leaving)),
		})
	}
	return nil
}

// setMesh gives the mesh what it is to publish.
func (p *Plane) setMesh(ctx context.Context, d *desired) error {
	if d.mesh == nil {
		return p.cfg.Mesh.Set(ctx, ingress.MeshState{})
	}
	s := *d.mesh
	path, ok := p.cfg.Overlay.Namespace(d.meshed)
	if !ok {
		return errors.New("publish ports: the mesh's network was not made")
	}
	s.Namespace = path
	return p.cfg.Mesh.Set(ctx, s)
}

// repair mends what others broke, frames first: the rest is made on their devices.
func (p *Plane) repair(ctx context.Context) {
	p.mu.Lock()
	members := slices.Collect(maps.Values(p.members))
	p.mu.Unlock()
	if _, err := p.cfg.Overlay.Check(ctx); err != nil && ctx.Err() == nil { // which tells and counts what it mends
		p.cfg.Logger.WarnContext(ctx, "did not repair", "what", "frames", "err", err)
	}
	p.mend(ctx, "mesh", p.cfg.Mesh.Check)
	p.mend(ctx, "names", p.cfg.DNS.Check)
	if p.cfg.ESP != nil && p.sealed {
		p.mend(ctx, "encryption", p.cfg.ESP.Check)
	}
	_ = each(members, func(m *member) error {
		p.mend(ctx, "services of "+short(m.endpoint.ID), m.check)
		return nil
	})
}

func (p *Plane) mend(ctx context.Context, what string, check func(context.Context) (int, error)) {
	n, err := check(ctx)
	if ctx.Err() != nil {
		return
	}
	if n > 0 {
		p.repaired.Add(uint64(n))
		p.cfg.Logger.WarnContext(ctx, "repaired what others changed", "what", what, "differences", n)
	}
	if err != nil {
		p.cfg.Logger.WarnContext(ctx, "did not repair", "what", what, "err", err)
	}
}

// each calls f for all of list and joins what failed.
func each[T any](list []T, f func(T) error) error {
	errs := make([]error, len(list))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, v := range list {
		g.Go(func() error {
			errs[i] = f(v)
			return nil // the others are tried all the same
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}

// eachMember is each, and names the container in errors.
func eachMember(members []*member, f func(*member) error) error {
	return each(members, func(m *member) error {
		if err := f(m); err != nil {
			return fmt.Errorf("container %s: %w", short(m.endpoint.ID), err)
		}
		return nil
	})
}

func short(id string) string { return id[:min(12, len(id))] }
