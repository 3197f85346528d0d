package engine

import (
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/jsonstream"
)

// progress is the stream of messages by which clients draw their bars.
type progress struct {
	w     http.ResponseWriter
	flush func() error
	// failed is set when the stream already told an error.
	failed bool
	// lost is set when the client is gone: nothing is written any more.
	lost bool
}

// progressLine is a message with the error also where older clients look.
type progressLine struct {
	jsonstream.Message
	ErrorText string `json:"error,omitempty"`
}

// send begins the reply with the first message.
func (p *progress) send(m jsonstream.Message) {
	if p.lost {
		return
	}
	if p.flush == nil {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
		p.flush = http.NewResponseController(p.w).Flush
	}
	line := progressLine{Message: m}
	if m.Error != nil {
		p.failed = true
		line.ErrorText = m.Error.Message
	}
	data, err := json.Marshal(line)
	if err != nil {
		return
	}
	if _, err := p.w.Write(append(data, '\r', '\n')); err != nil {
		p.lost = true
		return
	}
	p.lost = p.flush() != nil
}

// end tells how it went: by a status if nothing was sent yet, else as the last message.
func (p *progress) end(err error) error {
	switch {
	case err == nil && p.flush == nil:
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
	case err != nil && p.flush == nil:
		return err
	case err != nil && !p.failed:
		p.send(jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}})
	}
	return nil
}
