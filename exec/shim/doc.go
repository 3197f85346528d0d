// Package shim is the small process between the node and each container.
//
// It is written in C and runs from a constructor, before the Go runtime would
// start: a shim costs about a hundred kilobytes. It promises to keep its
// container's output and exit status, whatever becomes of the node's own
// process, and to let any number of nodes come and go.
//
// [Start] starts one. Its job is given to the creator, the process in which
// [Creating] is true; what a job says is the caller's business, and so is
// making the container. [Dial] reaches a shim again. The same shim serves a
// container's first process and one that is executed in it later.
package shim
