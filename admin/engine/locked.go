package engine

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store/object"
)

// textLocked is what a locked node says to all that it does not do.
const textLocked = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`

// LockedConfig is what the API of a locked node stands on.
type LockedConfig struct {
	Host Host
	// State is the node's part in its swarm: locked, or pending once it is open.
	State func() swarm.LocalNodeState
	// Unlock tries a key. It returns when the node takes part in its swarm
	// again. A wrong key is of the kind unauthenticated, one attempt too many
	// of the kind resource exhausted.
	Unlock func(ctx context.Context, key seal.Secret) error
	// Leave takes the node out of its swarm without the key. It returns when
	// the node is in none.
	Leave   func(ctx context.Context) error
	Version string
	Logger  *slog.Logger
}

// Locked is the API of a node whose keystore only the unlock key opens. It has
// what it takes to see that and to end it; [Locked.Refuse] answers all else.
type Locked struct {
	cfg LockedConfig
	api *API // what it has in common with the API of an open node
}

// NewLocked makes the API of a locked node.
func NewLocked(c LockedConfig) *Locked {
	l := &Locked{cfg: c}
	l.api = &API{Config: Config{Swarm: lockedSwarm{state: c.State}, Host: c.Host, Version: c.Version, Logger: c.Logger}}
	return l
}

// Routes is all that a locked node serves.
func (l *Locked) Routes() []admin.Route {
	a := l.api
	return []admin.Route{
		a.read("GET /_ping", a.ping),
		a.read("GET /version", a.version),
		a.read("GET /info", l.info),
		a.write(admin.Admin, "POST /swarm/unlock", l.unlock),
		a.write(admin.Admin, "POST /swarm/leave", l.leave),
	}
}

// Versioned takes the version off the path of requests, as [API.Versioned].
func (l *Locked) Versioned(next http.Handler) http.Handler { return l.api.Versioned(next) }

// Refuse answers what a locked node does not do.
func (l *Locked) Refuse(w http.ResponseWriter, _ *http.Request) {
	_ = writeJSON(w, http.StatusServiceUnavailable, common.ErrorResponse{Message: textLocked})
}

func (l *Locked) info(w http.ResponseWriter, r *http.Request) error {
	info, err := l.cfg.Host.Info(r.Context())
	if err != nil {
		return err
	}
	info.Swarm = l.api.Swarm.Info(r.Context())
	return writeJSON(w, http.StatusOK, info)
}

func (l *Locked) unlock(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[swarm.UnlockRequest](r)
	if err != nil {
		return err
	}
	if l.cfg.State() != swarm.LocalNodeStateLocked {
		return errNotLocked()
	}
	key, err := identity.ParseUnlockKey(req.UnlockKey)
	if err != nil {
		return invalid("%v", err)
	}
	err = l.cfg.Unlock(r.Context(), key)
	if errdefs.IsResourceExhausted(err) {
		return writeJSON(w, http.StatusTooManyRequests, common.ErrorResponse{Message: err.Error()})
	}
	return err
}

func (l *Locked) leave(_ http.ResponseWriter, r *http.Request) error {
	if !flag(r, "force") {
		return object.Errorf(errdefs.ErrUnavailable, "%s", "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	}
	return l.cfg.Leave(r.Context())
}

// lockedSwarm is a membership of which nothing is known.
type lockedSwarm struct {
	Swarm
	state func() swarm.LocalNodeState
}

func (s lockedSwarm) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: s.state()}
}
