// Package ca is the swarm's certificate authority at work: it makes machines
// nodes, renews their certificates and changes the root.
//
// [CA.Join], [CA.Renew] and [CA.Reenrol] answer requests; [CA.Run] follows the
// changes of the root that the swarm's spec asks for. All of it is for the
// manager that leads. What is decided about a node is in the store before its
// certificate is handed out, and a lost answer may be asked for again.
//
// A certificate's generation is the index of the command that recorded it, so
// that every replica which has not seen the command knows that it is behind.
//
// The package does not know who is at the other end of a connection: callers
// pass the source's address, or the node that the connection proved to be.
package ca

import (
	"crypto/tls"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"skep/store"
)

// Config is what an authority needs.
type Config struct {
	Store  store.Proposer
	NodeID string // of this manager
	// Certificate is this manager's, by which external authorities know it.
	Certificate func() (tls.Certificate, error)
	Logger      *slog.Logger
	// Batch is how many nodes at most are asked for a renewal per Pause while
	// the root changes; zero means 30 per 3 s.
	Batch int
	Pause time.Duration
}

// CA is the authority as one manager has it.
type CA struct {
	cfg     Config
	sources *limiter[netip.Prefix]
	nodes   *limiter[string]

	mu   sync.Mutex
	busy map[[32]byte]chan struct{} // keys that are being recorded; closed when done
}

const (
	defaultBatch = 30
	defaultPause = 3 * time.Second
)

// New is the authority of a manager, whether it leads or not.
func New(cfg Config) *CA {
	if cfg.Batch == 0 {
		cfg.Batch = defaultBatch
	}
	if cfg.Pause == 0 {
		cfg.Pause = defaultPause
	}
	return &CA{
		cfg:     cfg,
		sources: newLimiter[netip.Prefix](rate.NewLimiter(strangers, strangers)),
		nodes:   newLimiter[string](rate.NewLimiter(rate.Inf, 0)),
		busy:    map[[32]byte]chan struct{}{},
	}
}
