// Package containers runs the node's containers.
//
// Every container has a small process of its own, the shim, as its parent; it
// keeps logs and exit status while the node's process is away. [Engine] starts
// shims, watches them, and finds them again after a restart: a container never
// ends because the node's process did.
//
// What needs a process of its own, creating and joining a container, is in
// exec/doors; nothing else calls libcontainer. It does not fetch images and does
// not make networks; it asks for both through [Images] and [Networks].
package containers
