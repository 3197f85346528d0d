package engine

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

func (a *API) taskLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	t, err := s.Tasks.Find(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeLog(w, r, q, hasTTY(s, t), a.logOf(r.Context(), t, q.LogQuery))
}

// hasTTY tells whether a task has a terminal, and so one output.
func hasTTY(s *store.Snapshot, t *object.Task) bool {
	rev := s.Revision(t.ServiceID, t.SpecVersion)
	return rev != nil && rev.Spec.ContainerSpec != nil && rev.Spec.ContainerSpec.TTY
}

func (a *API) serviceLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	p, err := a.Swarm.Store(r.Context())
	if err != nil {
		return err
	}
	s := p.Snapshot()
	o, err := findService(s, r.PathValue("id"))
	if err != nil {
		return err
	}
	c := o.Spec.TaskTemplate.ContainerSpec
	lines := a.mergedLogs(r.Context(), s, o.ID, q.LogQuery)
	if q.Follow {
		lines = a.followedLogs(r.Context(), p, o.ID, q.LogQuery)
	}
	return writeLog(w, r, q, c != nil && c.TTY, lines)
}

// detailsOf says whose log a line is from, as clients parse it.
func detailsOf(t *object.Task) string {
	return "com.docker.swarm.node.id=" + url.QueryEscape(t.NodeID) +
		",com.docker.swarm.service.id=" + url.QueryEscape(t.ServiceID) +
		",com.docker.swarm.task.id=" + url.QueryEscape(t.ID)
}

// logOf is a task's log.
func (a *API) logOf(ctx context.Context, t *object.Task, q object.LogQuery) iter.Seq2[logEntry, error] {
	details := detailsOf(t)
	return func(yield func(logEntry, error) bool) {
		for line, err := range a.TaskLogs.TaskLogs(ctx, t, q) {
			if !yield(logEntry{line, details}, err) {
				return
			}
		}
	}
}

// tolerant is a task's log in which an error is a line: one task that cannot
// be read does not hide the others. A container that is gone has no log.
func (a *API) tolerant(ctx context.Context, t *object.Task, q object.LogQuery) iter.Seq[logEntry] {
	return func(yield func(logEntry) bool) {
		for line, err := range a.logOf(ctx, t, q) {
			switch {
			case err == nil:
				if !yield(line) {
					return
				}
				continue
			case ctx.Err() == nil && !errors.Is(err, errdefs.ErrNotFound):
				yield(logEntry{object.Warning(time.Now(), err), detailsOf(t)})
			}
			return
		}
	}
}

// hasLog says whether a task ever had a container.
func hasLog(t *object.Task) bool {
	if t.NodeID == "" {
		return false
	}
	if c := t.Status.ContainerStatus; c != nil && c.ContainerID != "" {
		return true
	}
	rank := object.Rank(t.Status.State)
	return rank >= object.Rank(swarm.TaskStateStarting) && rank <= object.Rank(swarm.TaskStateFailed)
}

// maxSources and maxNodeSources bound how many logs are read at once, of other
// nodes and of one of them: each is a stream that others have to share with.
const maxSources, maxNodeSources = 96, 24

// mergedLogs is what all tasks of a service wrote so far, in order of time. Of
// many tasks on other nodes only some are merged at a time.
func (a *API) mergedLogs(ctx context.Context, s *store.Snapshot, service string, q object.LogQuery) iter.Seq2[logEntry, error] {
	return func(yield func(logEntry, error) bool) {
		for _, tasks := range inRounds(s.Tasks.By(store.ByService, service), a.Swarm.Info(ctx).NodeID) {
			if !a.merge(ctx, tasks, q, yield) {
				return
			}
		}
	}
}

// inRounds are the tasks that have a log, in sets that may be read at once.
func inRounds(tasks iter.Seq[*object.Task], here string) [][]*object.Task {
	var rounds [][]*object.Task
	n, of := 0, map[string]int{}
	for t := range tasks {
		if !hasLog(t) {
			continue
		}
		i := 0
		if t.NodeID != here {
			i = max(n/maxSources, of[t.NodeID]/maxNodeSources)
			n++
			of[t.NodeID]++
		}
		for len(rounds) <= i {
			rounds = append(rounds, nil)
		}
		rounds[i] = append(rounds[i], t)
	}
	return rounds
}

// merge puts the logs of tasks in order of time. False means to stop.
func (a *API) merge(ctx context.Context, tasks []*object.Task, q object.LogQuery, yield func(logEntry, error) bool) bool {
	var sources []*logSource
	// All at once: each may be on a node that does not answer.
	var opening sync.WaitGroup
	for _, t := range tasks {
		next, stop := iter.Pull(a.tolerant(ctx, t, q))
		defer stop()
		src := &logSource{next: next}
		sources = append(sources, src)
		opening.Go(src.advance)
	}
	opening.Wait()
	sources = slices.DeleteFunc(sources, func(s *logSource) bool { return s.ended })
	for len(sources) > 0 {
		i := 0
		for j, src := range sources {
			// The rest of a line comes before anything else.
			if src.open || !sources[i].open && src.head.Time.Before(sources[i].head.Time) {
				i = j
			}
		}
		src := sources[i]
		src.open = !bytes.HasSuffix(src.head.Text, []byte("\n"))
		if !yield(src.head, nil) {
			return false
		}
		if src.advance(); src.ended {
			sources = slices.Delete(sources, i, i+1)
		}
	}
	return true
}

// logSource is one of the logs that are merged.
type logSource struct {
	next  func() (logEntry, bool)
	head  logEntry
	open  bool
	ended bool
}

func (s *logSource) advance() {
	head, ok := s.next()
	s.head, s.ended = head, !ok
}

// followedLogs is what all tasks of a service write, those included that are
// yet to come. It ends with ctx, or when the service is gone and its tasks are
// silent.
func (a *API) followedLogs(ctx context.Context, p store.Proposer, service string, q object.LogQuery) iter.Seq2[logEntry, error] {
	return func(yield func(logEntry, error) bool) {
		following, cancel := context.WithCancel(ctx)
		f := follower{api: a, lines: make(chan logEntry)}
		// Readers end with following, so cancel comes before the wait.
		defer f.Wait()
		defer cancel()
		silent := make(chan struct{})
		f.Go(func() {
			defer close(silent)
			f.watch(following, p, service, q)
		})
		for {
			select {
			case line := <-f.lines:
				if !yield(line, nil) {
					return
				}
			case <-silent:
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// follower reads several logs at once.
type follower struct {
	sync.WaitGroup
	api   *API
	lines chan logEntry
}

// watch follows the log of each task of the service once it has one. It
// returns when the service is gone and all logs have ended, or with ctx.
func (f *follower) watch(ctx context.Context, p store.Proposer, service string, q object.LogQuery) {
	var readers sync.WaitGroup
	defer readers.Wait()
	known := map[string]bool{}
	tail := q.Tail
	var after uint64
	for {
		ch := p.Since(after)
		after = ch.Snapshot.Index
		for t := range ch.Snapshot.Tasks.By(store.ByService, service) {
			if known[t.ID] || !hasLog(t) {
				continue
			}
			known[t.ID] = true
			q.Tail = tail
			readers.Go(func() { f.read(ctx, t, q) })
		}
		// Of tasks that come later everything is new.
		tail = -1
		if _, ok := ch.Snapshot.Services.Get(service); !ok {
			return
		}
		select {
		case <-ch.News:
		case <-ctx.Done():
			return
		}
	}
}

func (f *follower) read(ctx context.Context, t *object.Task, q object.LogQuery) {
	for line := range f.api.tolerant(ctx, t, q) {
		select {
		case f.lines <- line:
		case <-ctx.Done():
			return
		}
	}
}
