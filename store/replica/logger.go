package replica

import (
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// logger lets Raft log through slog, one level lower than it thinks fit:
// elections are no news to an operator, and what matters we say ourselves.
type logger struct {
	hclog.Logger // all that Raft does not use
	to           *slog.Logger
}

func newLogger(to *slog.Logger) hclog.Logger {
	return &logger{hclog.NewNullLogger(), to.With("part", "raft")}
}

//nolint:sloglint // the messages are Raft's
func (l *logger) Debug(msg string, args ...any) { l.to.Debug(msg, args...) }

//nolint:sloglint // the messages are Raft's
func (l *logger) Info(msg string, args ...any) { l.to.Debug(msg, args...) }

//nolint:sloglint // the messages are Raft's
func (l *logger) Warn(msg string, args ...any) { l.to.Info(msg, args...) }

//nolint:sloglint // the messages are Raft's
func (l *logger) Error(msg string, args ...any) { l.to.Warn(msg, args...) }

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
	switch level {
	case hclog.Warn:
		l.Warn(msg, args...)
	case hclog.Error:
		l.Error(msg, args...)
	default:
		l.Debug(msg, args...)
	}
}

func (l *logger) With(args ...any) hclog.Logger { return &logger{l.Logger, l.to.With(args...)} }

func (l *logger) Named(string) hclog.Logger { return l }
