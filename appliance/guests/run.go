package guests

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/store/object"
)

// Run gives places back until ctx ends. First, and now and then, it looks for
// those that an earlier process, or a lost answer, left with the leader.
func (c *Client) Run(ctx context.Context) error {
	look := time.Now()
	for wait := askAgain; ; {
		err := c.giveBack(ctx)
		if err == nil && !time.Now().Before(look) {
			if err = c.look(ctx); err == nil {
				look = time.Now().Add(lookAfter)
			}
		}
		due := time.Until(look)
		if err != nil {
			c.cfg.Logger.DebugContext(ctx, "did not reach a manager for containers' networks", "err", err)
			due, wait = wait, min(2*wait, askRarely)
		} else {
			wait = askAgain
		}
		t := time.NewTimer(due)
		select {
		case <-t.C:
		case <-c.wake:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

func (c *Client) managers() (Managers, error) {
	if m := c.cfg.Managers(); m != nil {
		return m, nil
	}
	return nil, object.Errorf(errdefs.ErrUnavailable, "the node is not back in its swarm yet")
}

// giveBack releases what is due. Outside of a swarm there is nobody to give it to.
func (c *Client) giveBack(ctx context.Context) error {
	for ids := c.due(); len(ids) > 0; ids = c.due() {
		m, err := c.managers()
		if err == nil {
			err = release(ctx, m, ids)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		c.returned(ids)
	}
	return nil
}

// look releases what the leader has of this node and nobody uses.
func (c *Client) look(ctx context.Context) error {
	m, err := c.managers()
	if err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	list, err := m.ListGuests(actx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ids := c.strays(list.IDs)
	if len(ids) == 0 {
		return nil
	}
	c.cfg.Logger.InfoContext(ctx, "gave back places on networks that no container uses", "guests", len(ids))
	return release(ctx, m, ids)
}

func release(ctx context.Context, m Managers, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	return m.ReleaseGuests(ctx, &wire.GuestRelease{IDs: ids})
}
