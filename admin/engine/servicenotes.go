package engine

import (
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// inspectedService is a service with what the API has no field for.
type inspectedService struct {
	swarm.Service
	Skep *serviceNotes `json:",omitempty"`
}

// serviceNotes say what is not as users might expect.
type serviceNotes struct {
	// SourceAddress is why the service does not see its clients' addresses.
	SourceAddress string `json:",omitempty"`
	// Unpublished is which published ports nobody answers on.
	Unpublished string `json:",omitempty"`
}

// publishedAs is nil if there is nothing to say.
func publishedAs(o *object.Service) *serviceNotes {
	source, unserved := object.PublishedAs(o.Spec.Labels, o.Endpoint.Ports)
	if source == "" && unserved == "" {
		return nil
	}
	return &serviceNotes{source, unserved}
}
