// Package tasks turns a task that was assigned to this node into a container:
// the image pulled, templates expanded, secrets and configs placed, ports
// published, the container started, watched, stopped and removed.
//
// Every verb of a [Controller] may be called again after a restart of the node
// and then goes on from what it finds: the container is looked up by the
// task's name. The package decides nothing about when a verb is called; that
// is the agent's part.
package tasks
