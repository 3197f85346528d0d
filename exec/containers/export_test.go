package containers

// Awaited reports whether somebody waits to be attached to a container.
func (e *Engine) Awaited(id string) bool {
	c, err := e.find(id)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0
}
