package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Server serves the API on its listeners.
type Server struct {
	Listeners []net.Listener
	Handler   http.Handler
	Logger    *slog.Logger
	// Grace is how long requests may go on after the end; zero means five seconds.
	Grace time.Duration
}

// Run serves until ctx ends, and then until the requests did or the grace is
// over. The contexts of requests end with ctx. The listeners are closed.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.identify),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       connContext,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range s.Listeners {
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		grace := s.Grace
		if grace == 0 {
			grace = 5 * time.Second
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := srv.Shutdown(last); err != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// identify puts the caller in the context where the connection alone could not say.
func (s *Server) identify(w http.ResponseWriter, r *http.Request) {
	if r.TLS != nil {
		r = r.WithContext(WithPrincipal(r.Context(), tlsPeer(r)))
	}
	s.Handler.ServeHTTP(w, r)
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if v, ok := c.(vouched); ok {
		return WithPrincipal(ctx, v.peer)
	}
	return ctx
}
