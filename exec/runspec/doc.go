// Package runspec turns what a client asked for into what the runtime is told:
// the OCI specification of a container.
//
// It is pure: it reads no file and asks no kernel. What depends on the machine
// comes in through [Machine], what was made for the container through [Place].
// Defaults (capabilities, seccomp profile, masked paths, mounts) are Docker's,
// made narrower where noted.
package runspec
