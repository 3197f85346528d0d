package hello

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// farewell is how long connections that are kept alive are answered on after
// the end was asked for.
const farewell = time.Second

// visitors are the open connections that speak HTTP.
//
// A connection that is kept alive cannot be closed between two requests: the
// next one may be on its way. So each is told with an answer that this was the
// last, and is closed then. Whoever asks for nothing within [farewell] may find
// the connection closed at any time, and knows that.
type visitors struct {
	mu   sync.Mutex
	open int
	left chan struct{} // size 1: open went down
}

func newVisitors() *visitors { return &visitors{left: make(chan struct{}, 1)} }

// count is for [http.Server.ConnState].
func (v *visitors) count(_ net.Conn, s http.ConnState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch s {
	case http.StateNew:
		v.open++
	case http.StateClosed, http.StateHijacked:
		v.open--
		select {
		case v.left <- struct{}{}:
		default:
		}
	case http.StateActive, http.StateIdle:
	}
}

func (v *visitors) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.open == 0
}

// wait returns when all have left, or after [farewell].
func (v *visitors) wait() {
	enough := time.NewTimer(farewell)
	defer enough.Stop()
	for !v.gone() {
		select {
		case <-v.left:
		case <-enough.C:
			return
		}
	}
}
