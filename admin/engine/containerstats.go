package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// statsInterval is the time between two samples.
const statsInterval = time.Second

// containerStats sends a sample a second, each with the CPU's counters of the
// one before, from which clients compute percentages. A single answer takes
// two samples unless the client wants it at once.
func (a *API) containerStats(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	streaming := flagOr(r, "stream", true)
	atOnce := flag(r, "one-shot") && minorOf(r) >= 41
	if streaming && atOnce {
		return invalid("cannot have stream=true and one-shot=true")
	}
	c, err := a.Containers.Inspect(ctx, r.PathValue("id"), false)
	if err != nil {
		return err
	}
	last, err := a.sample(ctx, c)
	if err != nil {
		return err
	}
	if !streaming {
		running := c.State != nil && c.State.Running
		if running && !atOnce {
			if last, err = a.nextSample(ctx, c, last); err != nil {
				return err
			}
		}
		return writeJSON(w, http.StatusOK, last)
	}
	flush, err := flushed(w, "application/json")
	if err != nil {
		return err
	}
	for out := json.NewEncoder(w); ; {
		if err = out.Encode(last); err != nil {
			return err
		}
		if err = flush(); err != nil {
			return err
		}
		last, err = a.nextSample(ctx, c, last)
		if err != nil {
			return unlessGone(err)
		}
	}
}

// unlessGone is err, unless the container was removed or the client left: a
// stream then just ends.
func unlessGone(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *API) nextSample(ctx context.Context, c container.InspectResponse, last container.StatsResponse) (container.StatsResponse, error) {
	select {
	case <-ctx.Done():
		return last, ctx.Err()
	case <-time.After(statsInterval):
	}
	s, err := a.sample(ctx, c)
	if !last.Read.IsZero() {
		s.PreRead, s.PreCPUStats = last.Read, last.CPUStats
	}
	return s, err
}

// sample is empty but for the name while the container does not run.
func (a *API) sample(ctx context.Context, c container.InspectResponse) (container.StatsResponse, error) {
	s, err := a.Containers.Stats(ctx, c.ID)
	if errors.Is(err, errdefs.ErrConflict) {
		s, err = container.StatsResponse{}, nil
	}
	s.ID, s.Name = c.ID, c.Name
	return s, err
}
