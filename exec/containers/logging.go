package containers

import (
	"cmp"
	"context"
	"iter"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"skep/exec/logs"
	"skep/store/object"
)

// logLimits are how much of a log is kept. Without options that is less than
// everything, unlike Docker's json-file: a log never fills the node's disk.
type logLimits struct {
	size  int64
	files int
	off   bool
}

func logging(c *container.LogConfig) (l logLimits, err error) {
	switch cmp.Or(c.Type, "json-file") {
	case "json-file", "local":
	case "none":
		return logLimits{off: true}, nil
	default:
		return l, invalid("logger: no log driver named '%s' is registered", c.Type)
	}
	l = logLimits{size: 20 << 20, files: 5}
	for key, val := range c.Config {
		switch key {
		case "max-size":
			if val == "-1" {
				l.size = 0
				continue
			}
			if l.size, err = units.FromHumanSize(val); err != nil || l.size <= 0 {
				return l, invalid("invalid value for max-size: %q", val)
			}
			if _, set := c.Config["max-file"]; !set && c.Type != "local" {
				l.files = 1
			}
		case "max-file":
			if l.files, err = strconv.Atoi(val); err != nil || l.files < 1 {
				return l, invalid("max-file cannot be less than 1")
			}
		case "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
		default:
			return l, invalid("unknown log opt '%s' for %s log driver", key, cmp.Or(c.Type, "json-file"))
		}
	}
	return l, nil
}

// Logs yields what the container wrote. Following ends with the container.
func (e *Engine) Logs(ctx context.Context, ref string, q object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(yield func(object.LogLine, error) bool) {
		c, err := e.find(ref)
		if err != nil {
			yield(object.LogLine{}, err)
			return
		}
		limits, err := logging(&c.record.Host.LogConfig)
		if err == nil && limits.off {
			err = object.Errorf(errdefs.ErrNotImplemented, "configured logging driver does not support reading")
		}
		if err != nil {
			yield(object.LogLine{}, err)
			return
		}
		ended := make(chan struct{})
		if q.Follow {
			reading, stop := context.WithCancel(ctx)
			defer stop()
			// Ends when the reading does, at the latest.
			go func() {
				if c.await(reading, func() bool { return !c.st.Running || c.removed }) == nil {
					close(ended)
				}
			}()
		}
		for line, err := range logs.Read(ctx, e.logDir(c.id), q, ended) {
			if !yield(line, err) {
				return
			}
		}
	}
}
