package wire

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
)

// NetworkView is what a node knows of the networks that its tasks and guests
// are on, at one version. It never changes: the next one shares with it what is
// the same.
type NetworkView struct {
	// Version is the store's, see [Networks].
	Version uint64
	// Port is the UDP port of the frames between nodes ([Swarm.DataPathPort]), which
	// whoever has the view fills in; 0 if the node was not told it.
	Port uint16
	// Stored says that it is of a node's file, which may be seconds behind what
	// that node was told, and did.
	Stored bool
	// Hosts are the nodes of the swarm, by ID.
	Hosts map[string]Host
	// Networks are by ID.
	Networks map[string]*NetworkMembers
}

// NetworkMembers is a network with all that is on it. Two views have the same
// pointer if nothing of it differs.
type NetworkMembers struct {
	Network
	Services  map[string]NetworkService // by ID
	Endpoints map[string]Endpoint       // by ID
}

// Parts are the messages that tell all of the view, but Port, to who knows nothing.
func (v *NetworkView) Parts() ([]*Networks, error) {
	all := &Networks{Complete: true, Version: v.Version}
	var failed error
	add := func(i NetworkItem) {
		i, err := i.Encoded()
		failed = errors.Join(failed, err)
		all.Items = append(all.Items, i)
	}
	for _, h := range sorted(v.Hosts) {
		add(NetworkItem{Host: &h})
	}
	for _, m := range sorted(v.Networks) {
		add(NetworkItem{Network: &m.Network})
		for _, s := range sorted(m.Services) {
			add(NetworkItem{Service: &s})
		}
		for _, e := range sorted(m.Endpoints) {
			add(NetworkItem{Endpoint: &e})
		}
	}
	return all.Parts(), failed
}

// sorted are the entries of a map in the order of their keys.
func sorted[T any](m map[string]T) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// View puts together what a manager says of the networks in one session.
type View struct {
	now *NetworkView
	// set is what was told of the set that is not whole yet, nil if there is none.
	set *draft
	// begun: a complete set was whole.
	begun bool
}

// draft is the view that is to be.
type draft struct {
	first *Networks // which says what the parts have in common
	view  NetworkView
	// before is what networks and hosts were, of which as much as possible is kept.
	before *NetworkView
	// own are the networks that nobody else sees yet; hosts says so of their map.
	own   map[string]bool
	hosts bool
}

// NewView begins with what the node knew before the session, nil if that was
// nothing. The first set that is applied to it is complete.
func NewView(now *NetworkView) *View { return &View{now: now} }

// Apply takes in the next part. With the last part of a set it returns the view
// of the set's version; before, and after an error, nil. After an error the view
// is of no use: the session is to end.
func (v *View) Apply(p *Networks) (*NetworkView, error) {
	if v.set == nil {
		if err := v.begin(p); err != nil {
			return nil, err
		}
	}
	if d := v.set; d.first.Complete != p.Complete || d.first.Version != p.Version {
		return nil, fmt.Errorf("networks of version %d end before they are whole", d.first.Version)
	}
	for i := range p.Items {
		if err := v.set.item(&p.Items[i]); err != nil {
			return nil, fmt.Errorf("networks of version %d: %w", p.Version, err)
		}
	}
	if p.More {
		return nil, nil
	}
	v.now, v.set, v.begun = v.set.finish(), nil, true
	return v.now, nil
}

func (v *View) begin(p *Networks) error {
	d := &draft{first: p, before: v.now, own: map[string]bool{}, view: NetworkView{Version: p.Version}}
	if d.before == nil {
		d.before = &NetworkView{}
	}
	switch {
	case p.Complete:
		d.view.Hosts, d.view.Networks, d.hosts = map[string]Host{}, map[string]*NetworkMembers{}, true
	case !v.begun:
		return errors.New("networks do not begin with a complete set")
	case p.Version <= v.now.Version:
		return fmt.Errorf("networks of version %d follow those of version %d", p.Version, v.now.Version)
	default:
		d.view.Hosts, d.view.Networks = v.now.Hosts, maps.Clone(v.now.Networks)
	}
	v.set = d
	return nil
}

// finish is the view. Of a complete set, what of it is as before is put back.
func (d *draft) finish() *NetworkView {
	if d.first.Complete {
		for id, now := range d.view.Networks {
			if was := d.before.Networks[id]; was != nil && reflect.DeepEqual(was, now) {
				d.view.Networks[id] = was
			}
		}
	}
	return &d.view
}

// item takes in one fact.
func (d *draft) item(i *NetworkItem) error {
	if err := i.check(); err != nil {
		return err
	}
	switch {
	case i.Network != nil:
		d.network(i.Network, i.Gone)
	case i.Host != nil:
		d.host(i.Host, i.Gone)
	case i.Service != nil:
		return member(d, i.Service.Network, i.Service.ID, i.Service, i.Gone, func(m *NetworkMembers) map[string]NetworkService { return m.Services })
	case i.Endpoint != nil:
		return member(d, i.Endpoint.Network, i.Endpoint.ID, i.Endpoint, i.Gone, func(m *NetworkMembers) map[string]Endpoint { return m.Endpoints })
	}
	return nil
}

func (d *draft) network(n *Network, gone bool) {
	m := d.view.Networks[n.ID]
	switch {
	case gone:
		delete(d.view.Networks, n.ID)
		delete(d.own, n.ID)
	case m == nil:
		d.own[n.ID] = true
		d.view.Networks[n.ID] = &NetworkMembers{Network: *n, Services: map[string]NetworkService{}, Endpoints: map[string]Endpoint{}}
	case !reflect.DeepEqual(m.Network, *n):
		d.members(n.ID).Network = *n
	}
}

func (d *draft) host(h *Host, gone bool) {
	if same(d.view.Hosts, h.ID, h, gone) {
		return
	}
	if !d.hosts {
		d.view.Hosts, d.hosts = maps.Clone(d.view.Hosts), true
	}
	put(d.view.Hosts, h.ID, h, gone)
}

// member takes in what is on a network. Of a network that is gone, it is gone
// anyway.
func member[T any](d *draft, network, id string, now *T, gone bool, of func(*NetworkMembers) map[string]T) error {
	m := d.view.Networks[network]
	switch {
	case m == nil && gone:
	case m == nil:
		return fmt.Errorf("network %q is not known", network)
	case !same(of(m), id, now, gone):
		put(of(d.members(network)), id, now, gone)
	}
	return nil
}

func same[T any](all map[string]T, id string, now *T, gone bool) bool {
	was, there := all[id]
	if gone {
		return !there
	}
	return there && reflect.DeepEqual(was, *now)
}

func put[T any](all map[string]T, id string, now *T, gone bool) {
	if gone {
		delete(all, id)
	} else {
		all[id] = *now
	}
}

// members is a network of the draft's own.
func (d *draft) members(id string) *NetworkMembers {
	m := d.view.Networks[id]
	if !d.own[id] {
		m = &NetworkMembers{Network: m.Network, Services: maps.Clone(m.Services), Endpoints: maps.Clone(m.Endpoints)}
		d.own[id], d.view.Networks[id] = true, m
	}
	return m
}
