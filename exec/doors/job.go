package doors

import (
	"io/fs"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Job is what the node tells a creator. It never touches a disk.
type Job struct {
	ID string
	// RunDir is the shim's, StateRoot is libcontainer's.
	RunDir, StateRoot string
	Process           *specs.Process
	// User and Groups are looked up in the container's root.
	User   string
	Groups []string
	// Root is nil for a process that joins a container.
	Root *Root
}

// Root is what is there to be made before a container's first process.
type Root struct {
	Spec *specs.Spec
	// Lower are the image's layers, the topmost first.
	Lower       []string
	Upper, Work string
	Files       []File
	// FilesDir is where their tmpfs is mounted.
	FilesDir string
	CopyUp   []CopyUp
}

// File is a file that is given to a container.
type File struct {
	// Target is an absolute path in the container.
	Target   string
	Data     []byte
	UID, GID int
	Mode     fs.FileMode
}

// CopyUp fills a new volume with what the image has at its place.
type CopyUp struct {
	Volume string // directory on the node
	Target string // path in the container
}
