package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/dns"
	"skep/net/esp"
	"skep/net/ingress"
	"skep/net/overlay"
	"skep/store/object"
)

// values compares what plans are made of.
func values() cmp.Option { return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

// host is node n<i>, at 192.0.2.i, with slot i.
func host(i int) wire.Host {
	return wire.Host{ID: fmt.Sprintf("n%d", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Slot: i}
}

// front is a network with the addresses 10.0.1.0/24.
func front() wire.Network {
	return wire.Network{
		ID: "front", Name: "Front", VNI: 4097,
		Subnets: []wire.Subnet{{Prefix: netip.MustParsePrefix("10.0.1.0/24"), Gateway: addr("10.0.1.1")}},
	}
}

// meshNetwork is that of the routing mesh.
func meshNetwork() wire.Network {
	return wire.Network{
		ID: "mesh", Name: "ingress", VNI: 4096, Ingress: true,
		Subnets: []wire.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.1")}},
	}
}

// task is an endpoint of the service web.
func task(id, node string, state wire.EndpointState, addresses ...string) wire.Endpoint {
	return wire.Endpoint{
		Network: "front", ID: id, Service: "web", Node: node, State: state, Addresses: addrs(addresses...), Names: []string{"web." + id},
	}
}

func web(vips ...string) wire.NetworkService {
	return wire.NetworkService{Network: "front", ID: "web", Name: "Web", VIPs: addrs(vips...)}
}

// members are a network with what is on it.
func members(n wire.Network, services []wire.NetworkService, endpoints ...wire.Endpoint) *wire.NetworkMembers {
	m := &wire.NetworkMembers{Network: n, Services: map[string]wire.NetworkService{}, Endpoints: map[string]wire.Endpoint{}}
	for _, s := range services {
		m.Services[s.ID] = s
	}
	for _, e := range endpoints {
		m.Endpoints[e.ID] = e
	}
	return m
}

// view has the hosts n1 to n3.
func view(version uint64, networks ...*wire.NetworkMembers) *wire.NetworkView {
	v := &wire.NetworkView{Version: version, Hosts: map[string]wire.Host{}, Networks: map[string]*wire.NetworkMembers{}}
	for i := 1; i <= 3; i++ {
		v.Hosts[host(i).ID] = host(i)
	}
	for _, n := range networks {
		v.Networks[n.ID] = n
	}
	return v
}

// stored is a view of the node's file.
func stored(version uint64, networks ...*wire.NetworkMembers) *wire.NetworkView {
	v := view(version, networks...)
	v.Stored = true
	return v
}

// world is the parts of a node, in memory. What they are told is written down.
type world struct {
	*Plane
	mu   sync.Mutex
	log  []string
	fail map[string]error // by the beginning of a line of the log
	// hooks run once, before a line is written that begins so.
	hooks map[string]func()
	ends  map[string]object.Attachment
	acked []uint64
	// leaving is what was said last of tasks that nothing is led to.
	leaving []string
	made    map[string]bool // networks
	plugs   map[string][]overlay.Attachment
	// frames are the networks that were set last, with their peers' addresses.
	frames map[string][]string
	// What is seen of the kernel and heard from others, see Check.
	state       overlay.State
	meshFaults  []string
	differences int
	echoes      map[netip.Addr]time.Duration
	told        map[string][]netip.Addr
}

// newWorld is node n1 and runs it.
func newWorld(t *testing.T, found ...object.Endpoint) *world {
	t.Helper()
	w := &world{fail: map[string]error{}, hooks: map[string]func(){}, ends: map[string]object.Attachment{}, plugs: map[string][]overlay.Attachment{}, frames: map[string][]string{}}
	for _, e := range found {
		w.ends[e.ID] = object.Attachment{Endpoint: e, Namespace: "/ns/" + e.ID}
		for _, o := range e.Overlays {
			w.plugs[e.ID] = append(w.plugs[e.ID], overlay.Attachment{ID: e.ID, Network: o.Network, Interface: deviceOf(e, o.Network)})
		}
	}
	w.Plane = New(Config{
		NodeID: func() string { return "n1" }, Attach: attachPart{w}, Overlay: overlayPart{w}, Mesh: meshPart{w}, DNS: dnsPart{w},
		Balance: func(_ context.Context, path string) (Balancer, error) {
			return &balancerPart{w, path}, w.note("balancer %s", path)
		},
		NoESP: errors.New("no xfrm"),
		Mode:  func(context.Context) (balance.Mode, string, error) { return balance.NFT, "no IPVS", nil },
		Echo: func(_ context.Context, path string, sources, targets []netip.Addr) (map[netip.Addr]time.Duration, error) {
			return w.echoes, w.note("echo from %s %v to %v", path, sources, sorted(targets))
		},
		Ask: func(_ context.Context, path, name string) ([]netip.Addr, error) {
			if addrs, ok := w.told[name]; ok {
				return addrs, nil
			}
			return nil, fmt.Errorf("ask for %s: no such host", name)
		},
		Acked:  func(p wire.Programmed) { w.acked, w.leaving = append(w.acked, p.Networks), p.Leaving },
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	return w
}

func sorted(list []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(list), netip.Addr.Compare)
}

// run runs the node until the test ends.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// note writes a line down, and fails if it is to.
func (w *world) note(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	w.hook(line)()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
	for prefix, err := range w.fail {
		if err != nil && strings.HasPrefix(line, prefix) {
			return err
		}
	}
	return nil
}

// meanwhile has f run before the next line that begins so.
func (w *world) meanwhile(prefix string, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hooks[prefix] = f
}

// hook is what is to run before the line, once.
func (w *world) hook(line string) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for prefix, f := range w.hooks {
		if strings.HasPrefix(line, prefix) {
			delete(w.hooks, prefix)
			return f
		}
	}
	return func() {}
}

// failing makes lines that begin so fail, or not any more.
func (w *world) failing(prefix string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[prefix] = err
}

// lines are what was written down since they were asked for last.
func (w *world) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.log
	w.log = nil
	return list
}

// linesOf are those about one container, whatever the node as a whole does beside.
func (w *world) linesOf(id string) []string {
	about := regexp.MustCompile(`^[a-z]+ (/ns/)?` + id + `( |$)`)
	return slices.DeleteFunc(w.lines(), func(line string) bool { return !about.MatchString(line) })
}

type attachPart struct{ *world }

func (w attachPart) Connect(_ context.Context, e object.Endpoint) (object.Attachment, error) {
	at := object.Attachment{Endpoint: e.Clone(), Namespace: "/ns/" + e.ID, Nameserver: []string{"192.0.2.53"}}
	if err := w.note("attach %s", e.ID); err != nil {
		return object.Attachment{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[e.ID] = at
	return at, nil
}

func (w attachPart) Disconnect(_ context.Context, id string) error {
	w.mu.Lock()
	delete(w.ends, id)
	w.mu.Unlock()
	return w.note("unattach %s", id)
}

func (w attachPart) Retain(_ context.Context, ids []string) error {
	return w.note("attach retains %v", ids)
}

func (w attachPart) Attachment(id string) (object.Attachment, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.ends[id]
	return at, ok
}

func (w attachPart) Attachments() []object.Attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.ends))
}

func (w attachPart) Amend(_ context.Context, e object.Endpoint) (object.Attachment, error) {
	text := ""
	for _, o := range e.Overlays {
		text += " " + o.Network
	}
	if err := w.note("amend %s%s", e.ID, text); err != nil {
		return object.Attachment{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.ends[e.ID]
	at.Endpoint.Overlays, at.DNS = e.Clone().Overlays, e.DNS
	w.ends[e.ID] = at
	return at, nil
}

func (w attachPart) Serves(e object.Endpoint) bool {
	at, ok := w.Attachment(e.ID)
	return ok && cmp.Equal(at.Endpoint, e, values())
}

func (attachPart) List(context.Context) ([]network.Inspect, error) { return nil, nil }
func (attachPart) Stats(string) (map[string]container.NetworkStats, error) {
	return map[string]container.NetworkStats{"eth1": {RxBytes: 1}}, nil
}

type overlayPart struct{ *world }

func (w overlayPart) Set(_ context.Context, list []*overlay.Network) error {
	frames := map[string][]string{}
	text := ""
	made := map[string]bool{}
	for _, n := range list {
		made[n.ID] = true
		frames[n.ID] = []string{}
		for _, p := range n.Peers {
			frames[n.ID] = append(frames[n.ID], fmt.Sprint(p.Addresses))
		}
		text += fmt.Sprintf(" %s:%d", n.ID, len(n.Peers))
	}
	w.mu.Lock()
	w.frames, w.made = frames, made
	w.mu.Unlock()
	return w.note("frames%s", text)
}

func (w overlayPart) Attach(_ context.Context, a overlay.Attachment) error {
	if slices.ContainsFunc(w.Attached(a.ID), func(b overlay.Attachment) bool { return a.Network == b.Network && a.Interface == b.Interface }) {
		return nil
	}
	if err := w.note("plug %s %s %s", a.ID, a.Network, a.Interface); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plugs[a.ID] = append(w.plugs[a.ID], a)
	return nil
}

func (w overlayPart) Detach(_ context.Context, id string, networks ...string) error {
	w.mu.Lock()
	w.plugs[id] = slices.DeleteFunc(w.plugs[id], func(a overlay.Attachment) bool {
		return len(networks) == 0 || slices.Contains(networks, a.Network)
	})
	w.mu.Unlock()
	return w.note("%s", strings.Join(append([]string{"unplug", id}, networks...), " "))
}

func (w overlayPart) Attached(id string) []overlay.Attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.plugs[id])
}

func (w overlayPart) Retain(_ context.Context, ids []string) error {
	return w.note("overlay retains %v", ids)
}

func (w overlayPart) Namespace(network string) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return "/overlay/" + network, w.made[network]
}

func (w overlayPart) Inspect(context.Context, string) (overlay.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state, nil
}
func (w overlayPart) Check(context.Context) (int, error) { return 2, w.note("mend frames") }
func (overlayPart) Repaired() uint64                     { return 2 }
func (overlayPart) Stats(string) (map[string]container.NetworkStats, error) {
	return map[string]container.NetworkStats{"eth0": {RxBytes: 2}}, nil
}

type meshPart struct{ *world }

func (w meshPart) Set(_ context.Context, s ingress.MeshState) error {
	if s.Namespace == "" {
		return nil
	}
	text := ""
	for _, p := range s.Published {
		text += fmt.Sprintf(" %s/%d:%d", p.Protocol, p.Port, len(p.Backends))
	}
	return w.note("mesh %s%s", s.Namespace, text)
}

func (w meshPart) Join(_ context.Context, m ingress.Member) error {
	return w.note("join %s %s %s %v", m.Namespace, m.Interface, m.Address, m.Ports)
}
func (w meshPart) Check(context.Context) (int, error) { return 3, w.note("mend mesh") }
func (w meshPart) Inspect(context.Context) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.meshFaults, nil
}

func (w meshPart) Conflicts() []ingress.Conflict {
	return []ingress.Conflict{{Protocol: "tcp", Port: 8080, Service: "web", Reason: "another program has it"}}
}

type dnsPart struct{ *world }

func (w dnsPart) Set(s dns.State) {
	text := ""
	for _, id := range slices.Sorted(maps.Keys(s.Networks)) {
		active := 0
		for _, e := range s.Networks[id].Endpoints {
			if e.Active {
				active++
			}
		}
		text += fmt.Sprintf(" %s:%d", id, active)
	}
	_ = w.note("names%s", text)
}

func (w dnsPart) Open(_ context.Context, c dns.Client) error {
	return w.note("answer %s %v", c.ID, c.Networks)
}
func (w dnsPart) Shut(id string)                   { _ = w.note("shut %s", id) }
func (w dnsPart) Retain(ids []string)              { _ = w.note("names retain %v", ids) }
func (dnsPart) Check(context.Context) (int, error) { return 0, nil }

type espPart struct{ *world }

func (w espPart) Set(_ context.Context, s esp.State) error {
	return w.note("encrypt %d, %d peers", s.Port, len(s.Peers))
}
func (espPart) Check(context.Context) (int, error) { return 0, nil }

type balancerPart struct {
	*world
	path string
}

func (b *balancerPart) Set(_ context.Context, list []balance.Service) error {
	text := ""
	for _, s := range list {
		text += fmt.Sprintf(" %s:", s.Address)
		for i, e := range s.Backends {
			if i > 0 {
				text += ","
			}
			text += e.Address.String()
			if e.Draining {
				text += "-"
			}
		}
	}
	return b.note("services %s%s", b.path, text)
}
func (b *balancerPart) Check(context.Context) (int, error) { return 0, nil }
func (b *balancerPart) Inspect(context.Context) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.differences, nil
}
func (b *balancerPart) Close() error { return b.note("close %s", b.path) }
