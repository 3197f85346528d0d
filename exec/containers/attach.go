package containers

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"skep/exec/shim"
	"skep/exec/stdio"
	"skep/store/object"
)

// attachment is somebody who waits to be attached to a container that is not
// started yet. Such a one misses nothing of its output.
type attachment struct {
	want shim.Want
	conn chan *shim.Conn // holds one; nil means that nothing will come
}

// Attach joins a client to the container's first process. It returns when the
// process ended, the client detached, or ctx ended.
func (e *Engine) Attach(ctx context.Context, ref string, s object.Streams) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	r := c.rec()
	if !r.Config.OpenStdin {
		s.Stdin = nil
	}
	want := wants(s)
	if s.Stdin != nil && r.Config.StdinOnce {
		want |= shim.WantClose
	}
	st := c.status()
	if st.Paused {
		return object.Errorf(errdefs.ErrConflict, "container %s is paused, unpause the container before attach", ref)
	}
	e.tell(c, events.ActionAttach)
	conn, err := e.dial(ctx, c, want, s.Attached)
	if err != nil || conn == nil {
		return err
	}
	defer conn.Close()
	err = stream(ctx, conn, s, r.Config.StdinOnce && !r.Config.Tty)
	if errors.Is(err, stdio.ErrDetached) {
		e.tell(c, events.ActionDetach)
		return nil
	}
	return err
}

func wants(s object.Streams) (w shim.Want) {
	if s.Stdout != nil {
		w |= shim.WantStdout
	}
	if s.Stderr != nil {
		w |= shim.WantStderr
	}
	return w
}

// dial connects to a running container's shim, or waits for the start. It says
// when the client has its place, if anybody wants to know.
func (e *Engine) dial(ctx context.Context, c *instance, want shim.Want, attached func()) (*shim.Conn, error) {
	if attached == nil {
		attached = func() {}
	}
	c.mu.Lock()
	if c.st.Running && c.conn != nil {
		c.mu.Unlock()
		conn, err := shim.Dial(e.runDir(c.id))
		if err != nil {
			return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		if err := conn.Hello(want); err != nil {
			conn.Close()
			return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		attached()
		return conn, nil
	}
	a := &attachment{want: want, conn: make(chan *shim.Conn, 1)}
	if c.removed {
		c.mu.Unlock()
		return nil, nil
	}
	c.waiting[a] = true
	c.mu.Unlock()
	attached()
	select {
	case conn := <-a.conn:
		return conn, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, a)
		c.mu.Unlock()
		select {
		case conn := <-a.conn: // it came at the same time
			if conn != nil {
				conn.Close()
			}
		default:
		}
		return nil, context.Cause(ctx)
	}
}

// maxWaiting is how many may wait for a start; a shim takes no more clients.
const maxWaiting = 12

func (c *instance) takeWaiting() (list []*attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range c.waiting {
		if len(list) == maxWaiting {
			break
		}
		list = append(list, a)
		delete(c.waiting, a)
	}
	return list
}

// stream carries data between a client and a process until one of them ends,
// or ctx does. With closeStdin the end of the client's input is the end of the
// process's.
func stream(ctx context.Context, conn *shim.Conn, s object.Streams, closeStdin bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if s.Stdin != nil {
		// It ends when the client's end of the stream is closed, which its
		// owner does after we return.
		go func() {
			_, err := io.Copy(conn, stdio.Detachable(s.Stdin, s.DetachKeys))
			switch {
			case errors.Is(err, stdio.ErrDetached):
				cancel(stdio.ErrDetached)
			case closeStdin:
				_ = conn.CloseStdin() // the process may have ended
			}
		}()
	}
	for {
		kind, data, err := conn.Read()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil, kind == shim.Ended:
			return nil
		}
		to := s.Stdout
		if kind == shim.Stderr {
			to = s.Stderr
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(data); err != nil {
			return fmt.Errorf("write to client: %w", err)
		}
	}
}

// Resize sets the size of the container's terminal.
func (e *Engine) Resize(_ context.Context, ref string, height, width uint) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	conn, running := c.conn, c.st.Running
	c.mu.Unlock()
	if !running || conn == nil {
		return object.Errorf(errdefs.ErrConflict, "container %s is not running", c.id)
	}
	return conn.Resize(height, width)
}
