package agent_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skep/appliance/agent"
)

// Attempts that fail are repeated ever later, and those that hang are waited
// for, until there is news.
func TestAgent_TriesAgainAtOnceWhenItIsToldTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan time.Time, 100)
		var hang atomic.Bool
		began := time.Now()
		_, a, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, func(c *agent.Config) {
			c.Dial = func(ctx context.Context) (net.Conn, error) {
				dials <- time.Now()
				if !hang.Load() {
					return nil, errors.New("refused")
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		tried := func() (at []time.Duration) {
			synctest.Wait()
			for len(dials) > 0 {
				at = append(at, (<-dials).Sub(began))
			}
			return at
		}
		time.Sleep(time.Minute)
		tried()
		hang.Store(true)
		told := (<-dials).Sub(began) + time.Second
		time.Sleep(time.Second)
		a.Hurry()
		if at := tried(); len(at) != 1 || at[0] != told {
			t.Errorf("told that there is news after %v, it tried at %v", told, at)
		}

		// What has just begun may succeed; what has lasted is stuck.
		time.Sleep(500 * time.Millisecond)
		a.Hurry()
		time.Sleep(400 * time.Millisecond)
		if at := tried(); len(at) > 0 {
			t.Errorf("an attempt was given up before %v: it tried at %v", told+time.Second, at)
		}
		time.Sleep(time.Minute)
		if at := tried(); len(at) != 1 || at[0] != told+time.Second {
			t.Errorf("an attempt that began at %v was given up for those at %v", told, at)
		}
		a.Hurry()
		if at := tried(); len(at) != 1 {
			t.Errorf("after a minute's attempt and news there are attempts at %v", at)
		}
		stop()
	})
}
