package images

import dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

// Rootfs is what a container needs of an image.
type Rootfs struct {
	// ID is the image's ID, "sha256:…".
	ID     string
	Config dockerspec.DockerOCIImageConfig
	// Lower holds the unpacked layers' directories, the topmost first.
	Lower []string
}
