package engine

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"skep/store"
	"skep/store/object"
)

// Containers is the node's container runtime. A ref is an ID, a name or a
// unique prefix of an ID. Errors are of the kinds of containerd/errdefs.
type Containers interface {
	Create(ctx context.Context, name string, req container.CreateRequest) (container.CreateResponse, error)
	Start(ctx context.Context, ref string) error
	// Stop, Restart: an empty signal and a nil timeout mean the container's
	// own; a negative timeout is forever.
	Stop(ctx context.Context, ref, signal string, timeout *time.Duration) error
	Restart(ctx context.Context, ref, signal string, timeout *time.Duration) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, force, volumes bool) error
	// ConnectNetwork puts a container on a network of the swarm, running or not;
	// DisconnectNetwork takes it off.
	ConnectNetwork(ctx context.Context, ref, name string, s *network.EndpointSettings) error
	DisconnectNetwork(ctx context.Context, ref, name string) error
	// Wait registers at once and returns a function that blocks until the condition holds.
	Wait(ctx context.Context, ref string, until container.WaitCondition) (func(context.Context) (container.WaitResponse, error), error)
	List(ctx context.Context, all, size bool) ([]container.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error)
	// Stats is one sample; the previous one's fields stay empty. A container
	// that does not run is a conflict.
	Stats(ctx context.Context, ref string) (container.StatsResponse, error)
	Logs(ctx context.Context, ref string, q object.LogQuery) iter.Seq2[object.LogLine, error]
	// Attach returns when the process ended, the client detached or ctx ended.
	// A container that was created and not started is waited for; Streams.Attached
	// is called when its first byte would be seen.
	Attach(ctx context.Context, ref string, s object.Streams) error
	Resize(ctx context.Context, ref string, height, width uint) error

	CreateExec(ctx context.Context, ref string, req container.ExecCreateRequest) (id string, err error)
	// StartExec returns at once if detach is set, else when the process ended
	// or the client detached. A size of 0, 0 leaves the terminal as it is.
	StartExec(ctx context.Context, id string, detach bool, height, width uint, s object.Streams) error
	// InspectExec gives the detach keys as they were asked for, in text.
	InspectExec(ctx context.Context, id string) (container.ExecInspectResponse, error)
	ResizeExec(ctx context.Context, id string, height, width uint) error
}

// Images is the node's image store. Progress is called from one goroutine at a
// time; an error that was also told as progress is still returned.
type Images interface {
	Pull(ctx context.Context, ref, platform string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error
	Push(ctx context.Context, ref string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error
	Load(ctx context.Context, archive io.Reader, progress func(jsonstream.Message)) error
	Save(ctx context.Context, refs []string, w io.Writer) error
	Tag(ctx context.Context, ref, target string) error
	List(ctx context.Context) ([]image.Summary, error)
	Inspect(ctx context.Context, ref string) (image.InspectResponse, error)
	History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error)
	Remove(ctx context.Context, ref string, force, prune bool) ([]image.DeleteResponse, error)
	// Prune removes images that no container uses and keep does not hold back;
	// dangling limits it to those without a name.
	Prune(ctx context.Context, dangling bool, keep func(image.Summary) bool) (image.PruneReport, error)
	// Distribution answers from the store before it asks a registry.
	Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error)
	Login(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error)
	// DiskUsage is the size of all layers in bytes, each counted once.
	DiskUsage(ctx context.Context) (int64, error)
}

// Volumes is the node's local volumes.
type Volumes interface {
	Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error)
	List(ctx context.Context, size bool) ([]volume.Volume, error)
	Inspect(ctx context.Context, name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	// Prune removes volumes that no container uses and keep does not hold back;
	// named includes those that were given a name.
	Prune(ctx context.Context, named bool, keep func(volume.Volume) bool) (volume.PruneReport, error)
}

// Networks is the node's local networks, and its part of the swarm's.
type Networks interface {
	List(ctx context.Context) ([]network.Inspect, error)
	// Check tells how a network of the swarm, by its ID or name, is doing on this
	// node. It changes nothing and takes a few seconds at most.
	Check(ctx context.Context, network string) (object.NodeCheck, error)
	Health(ctx context.Context) object.NetworkHealth
}

// Swarm is the node's membership. Its errors carry the texts of Swarm.
type Swarm interface {
	Init(ctx context.Context, req swarm.InitRequest) (nodeID string, err error)
	Join(ctx context.Context, req swarm.JoinRequest) error
	Leave(ctx context.Context, force bool) error
	// Info is the part of the swarm that every node knows of itself; the
	// cluster and the counts of nodes are filled in by the API.
	Info(ctx context.Context) swarm.Info
	// Store is the replicated state, whose snapshot has every change that was
	// acknowledged before the call, or an error of the kind unavailable with
	// Swarm's text when this node is no manager.
	Store(ctx context.Context) (store.Proposer, error)
	// ReachCA tells whether one of the external authorities that cfg names for
	// root can be reached. Those that it names for none are current's. which is
	// the word for root in Swarm's text.
	ReachCA(ctx context.Context, cfg swarm.CAConfig, root, current []byte, which string) error
	// Replica is what this manager has of the replicated state, leader or not.
	Replica() (*store.Snapshot, error)
}

// TaskLogs reads what a task's container wrote, on whichever node it is.
type TaskLogs interface {
	TaskLogs(ctx context.Context, task *object.Task, q object.LogQuery) iter.Seq2[object.LogLine, error]
}

// Host is what the API tells of the machine.
type Host interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
}
