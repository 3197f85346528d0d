package replica

import (
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// NewTransport connects members through a stream layer, which dials by node ID
// and lets in nobody but members.
func NewTransport(layer raft.StreamLayer, log *slog.Logger) raft.Transport {
	t := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  layer,
		MaxPool: 3,
		// With more than one in flight a follower that failed a few times never
		// gets another entry.
		MaxRPCsInFlight: 1,
		Timeout:         10 * time.Second,
		Logger:          newLogger(log),
	})
	t.TimeoutScale = 8 << 20 // bytes of a snapshot that may take one Timeout
	return t
}
