package membership

import "sync"

// current is a value that others wait for changes of.
type current[T any] struct {
	mu    sync.Mutex
	value T
	news  chan struct{} // closed at the next change
}

// get is the value, and what closes when there is another.
func (c *current[T]) get() (T, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.news == nil {
		c.news = make(chan struct{})
	}
	return c.value, c.news
}

func (c *current[T]) set(v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value = v
	if c.news != nil {
		close(c.news)
		c.news = nil
	}
}
