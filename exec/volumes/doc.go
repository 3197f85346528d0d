// Package volumes keeps the node's local volumes: one directory each, with a
// note of its labels beside the data.
//
// It promises that a volume in use is not removed. It mounts nothing: who runs
// a container binds [Store.Path]. Drivers other than "local" do not exist.
package volumes
