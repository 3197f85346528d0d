// Package object holds the objects that a swarm replicates.
//
// They wrap the Engine API's own types: what a client posts is what is stored,
// scheduled and sent to a node. The wrappers add only what replication needs.
// Objects are immutable once they are in a store: change a copy ([Object].Clone).
//
// # Glossary
//
//   - node: one machine that runs Skep; a manager replicates the state, a worker runs tasks, the first is also the second.
//   - service: what the user wants to run; its spec may change, each change makes a revision.
//   - revision: one version of a service's task template; tasks refer to it.
//   - task: one attempt to run a revision, in one slot (replicated) or on one node (global). Never restarted.
//   - slot: the place among a service's replicas that a task fills, from 1.
//   - guest: a container that its node runs by itself, on an attachable network of the swarm.
//   - assignment: a task as its node gets it, with everything that it needs.
//   - desired state: how far a task is to go; status: how far it came. Both only move forward.
//
// # Log attributes
//
// The keys used with slog everywhere: node, task, service, slot, container,
// network, image, loop, err, took.
package object
