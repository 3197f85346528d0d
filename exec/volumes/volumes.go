package volumes

import (
	"log/slog"
	"sync"

	"github.com/moby/moby/api/types/events"
)

// Config is what a Store needs.
type Config struct {
	// Dir holds one directory per volume.
	Dir string
	// Publish tells of volumes that come and go; nil tells nobody.
	Publish func(events.Message)
	Logger  *slog.Logger
}

// Store is the node's local volumes.
type Store struct {
	cfg Config

	mu    sync.Mutex
	users map[string]map[string]bool // volume → holders
}
