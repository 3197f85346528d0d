package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

const (
	// checkTime is how long all nodes together may take to tell of a network.
	checkTime = 5 * time.Second
	// maxCheck is as much as one node may tell, in bytes.
	maxCheck = 32 << 20

	checkPattern = "GET /skep/networks/{id}/check"
)

func (a *API) checkRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /skep/networks", a.networkHealth),
		a.read(checkPattern, a.networkCheck),
	}
}

// networkHealth is how this node does its part for the swarm's networks.
func (a *API) networkHealth(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, a.Networks.Health(r.Context()))
}

// ownCheck is what this node knows of a network.
func (a *API) ownCheck(w http.ResponseWriter, r *http.Request) error {
	c, err := a.Networks.Check(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, c)
}

// networkCheck is what the nodes that have a network know of it. A node that is
// no manager answers for itself.
func (a *API) networkCheck(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeoutCause(r.Context(), checkTime, errMute)
	defer cancel()
	ref := r.PathValue("id")
	if _, err := a.Swarm.Replica(); err != nil {
		own, err := a.Networks.Check(ctx, ref)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, object.NetworkCheck{Name: ref, Nodes: []object.NodeCheck{own}})
	}
	n, s, err := a.findNetwork(ctx, ref, "")
	switch {
	case err != nil:
		return err
	case n.swarm == nil:
		return invalid("network %s is not the swarm's: there is nothing to check between nodes", n.Name)
	}
	report := object.NetworkCheck{ID: n.ID, Name: n.Name, Nodes: a.askNodes(ctx, s, n.swarm)}
	complete(s, &report)
	return writeJSON(w, http.StatusOK, report)
}

// askNodes asks all nodes that have a network at once, and waits for nobody
// longer than ctx lasts.
func (a *API) askNodes(ctx context.Context, s *store.Snapshot, n *object.Network) []object.NodeCheck {
	type answer struct {
		i     int
		check object.NodeCheck
	}
	nodes := nodesOn(s, n)
	answers := make(chan answer, len(nodes)) // whoever comes too late is not heard
	list := make([]object.NodeCheck, len(nodes))
	for i, node := range nodes {
		list[i] = object.NodeCheck{Node: node.ID, Unavailable: errMute.Error()}
		// It ends soon after ctx does; its answer may then be nobody's.
		go func() { answers <- answer{i, a.askNode(ctx, node, n.ID)} }()
	}
	for range nodes {
		select {
		case got := <-answers:
			list[got.i] = got.check
		case <-ctx.Done():
			return list
		}
	}
	return list
}

// nodesOn are the nodes that have to do with a network, in the order of their names.
func nodesOn(s *store.Snapshot, n *object.Network) []*object.Node {
	on := map[string]bool{}
	for t := range s.Tasks.All() {
		if _, ok := placeOn(t.Networks, n.ID); ok && !object.Over(t) {
			on[t.NodeID] = true
		}
	}
	for g := range s.Guests.All() {
		if g.Network.ID == n.ID {
			on[g.NodeID] = true
		}
	}
	var nodes []*object.Node
	for node := range s.Nodes.All() {
		if on[node.ID] || n.Spec.Ingress && node.Slot != 0 {
			nodes = append(nodes, node)
		}
	}
	slices.SortFunc(nodes, func(a, b *object.Node) int {
		return cmp.Or(cmp.Compare(a.Description.Hostname, b.Description.Hostname), cmp.Compare(a.ID, b.ID))
	})
	return nodes
}

func (a *API) askNode(ctx context.Context, node *object.Node, network string) object.NodeCheck {
	c, err := a.nodeCheck(ctx, node, network)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || ctx.Err() != nil {
		err = errMute
	}
	if err != nil {
		c = object.NodeCheck{Unavailable: err.Error()}
	}
	c.Node = node.ID // whatever it says of itself
	return c
}

func (a *API) nodeCheck(ctx context.Context, node *object.Node, network string) (c object.NodeCheck, err error) {
	switch {
	case node.ID == a.Swarm.Info(ctx).NodeID:
		return a.Networks.Check(ctx, network)
	case node.Status.State == swarm.NodeStateDown:
		return c, errors.New("it is down")
	case a.Connect == nil:
		return c, errors.New("there is no way to other nodes")
	}
	_, path, _ := strings.Cut(checkPattern, " ")
	u := url.URL{
		Scheme: "http", Host: net.JoinHostPort(node.ID, "80"),
		Path: "/v" + versionString(maxVersion) + strings.Replace(path, "{id}", network, 1),
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return c, err
	}
	a.introduce(ctx, req)
	resp, err := a.remote.RoundTrip(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxCheck)
	if resp.StatusCode != http.StatusOK {
		var refusal common.ErrorResponse
		if err := json.NewDecoder(body).Decode(&refusal); err != nil || refusal.Message == "" {
			refusal.Message = resp.Status
		}
		return c, errors.New(refusal.Message)
	}
	if err := json.NewDecoder(body).Decode(&c); err != nil {
		return c, fmt.Errorf("read its answer: %w", err)
	}
	return c, nil
}
