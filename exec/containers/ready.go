package containers

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// moves keeps the kernel ready for processes to change their cgroup while
// containers are being made. The first such move after a pause waits until
// every CPU has passed through the scheduler, some 5 to 10 ms, and those that
// follow within such a time do not (rcu_sync, for cgroup_threadgroup_rwsem). So
// this process moves to where it is, now and again, while the creator comes to
// the point where it moves the container's init.
type moves struct {
	mu    sync.Mutex
	users int
	stop  chan struct{}
}

// movesEvery is well within the time that the kernel stays ready for.
const movesEvery = 2 * time.Millisecond

// ready keeps the kernel ready until release is called.
func (e *Engine) ready(ctx context.Context) (release func()) {
	m := &e.moves
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users++; m.users == 1 {
		stop := make(chan struct{})
		m.stop = stop
		// Without it the container's own move waits, as it always would.
		_ = e.background(ctx, func(ctx context.Context) { keepReady(ctx, stop) })
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.users--; m.users == 0 {
			close(m.stop)
		}
	}
}

func keepReady(ctx context.Context, stop <-chan struct{}) {
	f := ownCgroup()
	if f == nil {
		return
	}
	defer f.Close()
	tick := time.NewTicker(movesEvery)
	defer tick.Stop()
	for {
		if _, err := f.WriteAt([]byte("0"), 0); err != nil { // 0 is who writes
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

// ownCgroup opens the list of processes of this process's own cgroup, in the
// unified hierarchy; nil if there is none.
func ownCgroup() *os.File {
	list, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(list) {
		own, unified := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::"))
		if !unified {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			f, err := os.OpenFile(filepath.Join(mount, string(own), "cgroup.procs"), os.O_WRONLY, 0)
			if err == nil {
				return f
			}
		}
	}
	return nil
}
