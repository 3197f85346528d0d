package appliance

import (
	"context"
	"io"
	"log/slog"

	"skep/appliance/config"
)

// Boot runs the node that the file at path describes, until ctx ends. It logs
// to logs. Problems of the file are returned as they are.
func Boot(ctx context.Context, path string, logs io.Writer) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	return Run(ctx, cfg, newLogger(cfg.Log, logs))
}

func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	// The node file was checked: the text is a level.
	_ = level.UnmarshalText([]byte(c.Level))
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
