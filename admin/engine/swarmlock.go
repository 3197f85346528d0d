package engine

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store/object"
)

// setUnlockKey makes the swarm's unlock key what its spec asks for: a new one
// when managers begin to lock or when it is rotated, none when they do not
// lock. Managers follow KEKVersion.
func setUnlockKey(c *object.Cluster, index uint64, rotate bool) {
	locks := c.Spec.EncryptionConfig.AutoLockManagers
	has := len(c.UnlockKey) > 0
	switch {
	case locks && (!has || rotate):
		c.UnlockKey = seal.NewSecret()
	case !locks && has:
		c.UnlockKey = nil
	default:
		return
	}
	c.KEKVersion = max(index, c.KEKVersion+1)
}

// unlockKey is empty while managers start by themselves.
func (a *API) unlockKey(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	var answer swarm.UnlockKeyResponse
	if c := s.Cluster(); c != nil && len(c.UnlockKey) > 0 {
		answer.UnlockKey = identity.FormatUnlockKey(c.UnlockKey)
	}
	return writeJSON(w, http.StatusOK, answer)
}

// unlockSwarm is refused: a node that serves all of the API is not locked.
func (a *API) unlockSwarm(_ http.ResponseWriter, r *http.Request) error {
	if _, err := decode[swarm.UnlockRequest](r); err != nil {
		return err
	}
	if _, err := a.Swarm.Store(r.Context()); err != nil {
		return err
	}
	return errNotLocked()
}

func errNotLocked() error { return object.Errorf(errdefs.ErrConflict, "swarm is not locked") }
