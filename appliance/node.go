package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/admin"
	"skep/admin/engine"
	"skep/appliance/agent"
	"skep/appliance/config"
	"skep/appliance/guests"
	"skep/appliance/logstream"
	"skep/appliance/membership"
	"skep/appliance/share"
	"skep/exec/containers"
	"skep/exec/embedded"
	"skep/exec/images"
	"skep/exec/registry"
	"skep/exec/shim"
	"skep/exec/tasks"
	"skep/exec/volumes"
	"skep/net/gossip"
	"skep/pki/identity"
	"skep/store"
	"skep/store/object"
)

// node is the parts of a node. They are made in the order of the fields.
type node struct {
	cfg    *config.Config
	logger *slog.Logger

	dir        *dataDir
	front      *identity.Front
	keys       *identity.Keystore
	host       *host
	exe        string // what containers start from
	journal    *engine.Journal
	network    network
	sharing    *sharing
	images     *images.Store
	volumes    *volumes.Store
	guests     *guests.Client
	containers *containers.Engine
	tasks      *tasks.Executor
	logs       *logstream.Server
	gossip     *gossip.Gossip
	membership *membership.Membership
	api        *engine.API
	mux        *admin.Mux
	// peers is what managers have of the API.
	peers http.Handler
	audit *admin.Audit
	// lockedAudit is of the time before the node was unlocked, if it was locked.
	lockedAudit *admin.Audit
	handler     switched
	listeners   []net.Listener
	// fatal takes a failure after which the process must end at once.
	fatal chan error
}

// Run is a node from its start until ctx ends; its containers go on after that.
func Run(ctx context.Context, cfg *config.Config, logger *slog.Logger) error {
	n := &node{cfg: cfg, logger: logger, journal: engine.NewJournal(), fatal: make(chan error, 1)}
	ended := make(chan error, 1)
	go func() { // outlives Run if the disk hangs, and then the process ends
		err := n.boot(ctx)
		n.close()
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case err := <-n.fatal:
		return err
	}
}

func (n *node) boot(ctx context.Context) error {
	err := n.open(ctx, n.ground())
	if errors.Is(err, identity.ErrLocked) {
		return n.runLocked(ctx)
	}
	if err == nil {
		err = n.open(ctx, n.rest())
	}
	if err != nil {
		return err
	}
	return n.run(ctx, append(n.parts(), part{"admin API", n.serve}))
}

// step is one part of a node being opened.
type step struct {
	name string
	do   func(context.Context) error
}

// ground is what a node has even if it is locked, and then its keys.
func (n *node) ground() []step {
	return []step{
		{"data directory", n.openDir},
		{"front", n.openFront},
		{"keystore", n.openKeys},
	}
}

// runtime is what it takes to run containers.
func (n *node) runtime() []step {
	return []step{
		{"runtime program", n.install},
		{"kernel", n.prepareKernel},
		{"network", n.openNetworks},
		{"images", n.openImages},
		{"containers", n.openContainers},
	}
}

// rest is all that is opened with the keys.
func (n *node) rest() []step {
	return append(n.runtime(), step{"swarm", n.openMembership}, step{"admin API", n.openAPI})
}

func (n *node) open(ctx context.Context, steps []step) error {
	for _, s := range steps {
		started := time.Now()
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		n.logger.DebugContext(ctx, "opened", "part", s.name, "took", time.Since(started))
	}
	return nil
}

// part is something of the node that runs until ctx ends.
type part struct {
	name string
	run  func(context.Context) error
}

// parts are those that run once all is open, but for the admin API.
func (n *node) parts() []part {
	return append(n.network.run(), []part{
		{"containers", n.containers.Run},
		{"guests", n.guests.Run},
		{"swarm", n.membership.Run},
		{"gossip", n.gossip.Run},
		{"preload", n.preload},
	}...)
}

func (n *node) run(ctx context.Context, parts []part) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		g.Go(func() error {
			if err := p.run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (n *node) openDir(context.Context) (err error) {
	n.dir, err = openDataDir(n.cfg.DataDir)
	return err
}

// openFront is what a node needs to talk to its operator.
func (n *node) openFront(context.Context) (err error) {
	if n.front, err = identity.OpenFront(n.dir.path); err != nil {
		return err
	}
	n.host, err = readHost(n.dir.scope(), n.cfg.Hostname, n.dir.path, n.cfg.Swarm.Labels)
	return err
}

func (n *node) openKeys(context.Context) (err error) {
	if err = n.dir.checkKeys(); err != nil {
		return err
	}
	n.keys, err = identity.Open(n.dir.path)
	return err
}

// links are the machine's, without the node's own.
func (n *node) links() ([]membership.Link, error) {
	return membership.MachineLinks(func(name string) bool { return strings.Contains(name, n.dir.scope()) })
}

// install places what containers start from: the small program that this
// binary carries, or else the binary itself.
func (n *node) install(context.Context) (err error) {
	var program shim.Program = shim.Self{}
	if p, ok := embedded.Find(); ok {
		program = p
	}
	n.exe, err = shim.Install(n.dir.join("bin"), Version, program)
	return err
}

func (n *node) openImages(context.Context) (err error) {
	hosts, err := registryHosts(n.cfg.Registries)
	if err != nil {
		return err
	}
	n.sharing = n.newSharing()
	n.images, err = images.Open(images.Config{
		Source:     n.sharing,
		Dir:        n.dir.join("images"),
		Registries: hosts,
		Hello:      func() string { return "/proc/self/exe" }, // also when its path holds a newer one
		InUse:      n.usersOf,
		Publish:    n.journal.Publish,
		Logger:     n.logger.With("part", "images"),
	})
	if err != nil {
		return err
	}
	n.volumes, err = volumes.Open(volumes.Config{Dir: n.dir.join("volumes"), Publish: n.journal.Publish, Logger: n.logger.With("part", "volumes")})
	return err
}

func (n *node) openContainers(ctx context.Context) (err error) {
	n.guests = n.newGuests()
	n.containers, err = containers.Open(ctx, containers.Config{
		Dir:          n.dir.join("containers"),
		RunDir:       n.dir.join("run"),
		Exe:          n.exe,
		CgroupParent: "/skep-" + n.dir.scope(),
		Images:       n.images,
		Networks:     n.network.plane,
		Guests:       n.guests,
		Volumes:      n.volumes,
		Sealer:       n.keys.Keyring(),
		Publish:      n.journal.Publish,
		Logger:       n.logger.With("part", "containers"),
	})
	if err != nil {
		return err
	}
	n.tasks = &tasks.Executor{
		Containers: n.containers,
		Images:     n.images,
		Logs:       n.containers,
		Description: func(context.Context) (swarm.NodeDescription, error) {
			return n.host.describe(n.membership.TLSInfo()), nil
		},
		Logger: n.logger.With("part", "tasks"),
	}
	n.logs = logstream.NewServer(n.tasks, n.logger.With("part", "logs"))
	return nil
}

// rekeying knows what of the node is sealed, whatever its part in a swarm.
func (n *node) rekeying() *rekeying {
	return &rekeying{
		keys: n.keys,
		parts: []membership.Sealed{
			{Name: "containers", Reseal: n.containers.Reseal},
			{Name: "audit", Reseal: func(ctx context.Context) error { return n.audit.Reseal(ctx) }},
		},
		logger: n.logger.With("part", "keys"),
	}
}

func (n *node) openMembership(context.Context) error {
	n.gossip = n.newGossip()
	n.membership = membership.New(membership.Config{
		File:     n.cfg.Swarm,
		Dir:      n.dir.path,
		Keys:     n.keys,
		Executor: executor{n.tasks},
		Describe: n.host.describe,
		Serve:    n.serveManagers,
		Holdings: tellHoldings(n.images),
		Held:     n.sharing.directory.Set,
		Networks: n.network.plane.Set,
		Tunnels:  n.network.plane.SetTunnels,
		Boot:     n.network.boot,
		Gossip:   func(m membership.Gossip) { n.gossip.Set(gossipAs(m)) },
		Routes:   n.sharingRoutes(),
		Fatal:    func(err error) { n.fatal <- err },
		Rekey:    n.rekeying().followKEK,
		Links:    n.links,
		Beside:   []func(context.Context, store.Proposer) error{n.journal.Watch},
		Logger:   n.logger.With("part", "swarm"),
	})
	if n.keys.State().ClusterID == "" {
		n.network.plane.Set(nil) // whatever a swarm left that the node is out of
	}
	n.sharing.client = share.NewClient(share.ClientConfig{Dialer: n.membership.Dialer(), Leader: n.membership.Leader})
	return nil
}

func (n *node) openAPI(ctx context.Context) (err error) {
	n.api, err = engine.New(engine.Config{
		Swarm:         n.membership,
		Containers:    n.containers,
		Images:        n.images,
		Volumes:       n.volumes,
		Networks:      n.network.plane,
		TaskLogs:      n.newLogReader(),
		Host:          n.host,
		Events:        n.journal,
		Connect:       n.membership.Connect,
		LocalExecOnly: n.cfg.Admin.LocalExecOnly,
		Version:       Version,
		Logger:        n.logger.With("part", "api"),
	})
	if err != nil {
		return err
	}
	if n.audit, err = admin.OpenAudit(n.dir.join("audit"), n.keys.Keyring()); err != nil {
		return err
	}
	n.mux, err = admin.NewMux(admin.MuxConfig{
		Routes: append(n.api.Routes(), admin.Health(n.ready)),
		Audit:  n.audit,
		Hosts:  []string{n.host.hostname},
		Logger: n.logger.With("part", "admin"),
	})
	if err != nil {
		return err
	}
	if n.peers, err = n.newPeers(); err != nil {
		return err
	}
	n.handler.set(n.api.Versioned(n.mux))
	return n.listen(ctx)
}

// ready is nil when the node is what it is meant to be: its containers found
// again, and in its swarm if it has one.
func (n *node) ready() error {
	select {
	case <-n.membership.Settled():
		return nil
	default:
		return errors.New("the swarm is not ready")
	}
}

func (n *node) close() {
	for _, l := range n.listeners {
		_ = l.Close()
	}
	for _, a := range []*admin.Audit{n.audit, n.lockedAudit} {
		if a != nil {
			n.logClose("audit", a.Close())
		}
	}
	n.logClose("networks", n.network.close())
	if n.keys != nil {
		n.logClose("keystore", n.keys.Close())
	}
	if n.front != nil {
		n.logClose("front", n.front.Close())
	}
	if n.dir != nil {
		n.logClose("data directory", n.dir.Close())
	}
}

func (n *node) logClose(part string, err error) {
	if err != nil {
		n.logger.Warn("could not close", "part", part, "err", err)
	}
}

// newGuests asks for nothing until the membership is there.
func (n *node) newGuests() *guests.Client {
	return guests.NewClient(guests.Config{
		Managers: func() guests.Managers {
			if n.membership == nil {
				return nil
			}
			return n.membership
		},
		Logger: n.logger.With("part", "guests"),
	})
}

// containerName is what the network calls a container. The network is there
// before the containers are.
func (n *node) containerName(ctx context.Context, id string) string {
	if n.containers == nil {
		return ""
	}
	c, err := n.containers.Inspect(ctx, id, false)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(c.Name, "/")
}

// usersOf are the containers that hold an image back from being removed.
func (n *node) usersOf(imageID string) []images.User {
	if n.containers == nil {
		return nil
	}
	return n.containers.ImageUsers(imageID)
}

// registryHosts reads the node file's registries with their passwords.
func registryHosts(rs []config.Registry) ([]registry.Host, error) {
	var hosts []registry.Host
	for _, r := range rs {
		h := registry.Host{Host: r.Host, Mirrors: r.Mirrors, Username: r.Username}
		if r.Password != "" {
			secret, err := r.Password.Read()
			if err != nil {
				return nil, fmt.Errorf("registries: password of %s: %w", r.Host, err)
			}
			h.Password = strings.TrimRight(string(secret), "\r\n")
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// preload loads the images that the node file names, if they are not here yet.
func (n *node) preload(ctx context.Context) error {
	for _, path := range n.cfg.Images.Preload {
		if err := n.images.LoadDir(ctx, path); err != nil {
			// A node without its images still serves; tasks that need them say so.
			n.logger.ErrorContext(ctx, "could not preload images", "path", path, "err", err)
		}
	}
	return nil
}

// executor is what runs tasks, as the agent knows it.
type executor struct{ *tasks.Executor }

// Controller is the handle of one task.
func (e executor) Controller(a *object.Assignment) (agent.Controller, error) {
	c, err := e.Executor.Controller(a)
	if err != nil {
		return nil, err
	}
	return c, nil
}
