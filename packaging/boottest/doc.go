// Package boottest boots machines for tests: Debian's cloud kernel in QEMU,
// without KVM, and this package's own test binary as the first process.
//
// It shows what the machine that runs the tests may not have: a unified cgroup
// hierarchy without version 1 beside it, a kernel that has its parts in modules
// and nobody who loads them but the node, IPVS and IPsec, a root directory that is
// nobody's disk. The scripts in testdata have the words of those that run outside.
//
// It needs qemu-system-x86, busybox-static, ipvsadm, iproute2 and what .ci/kernel
// unpacks, but neither root nor a virtual machine's hardware. Nothing is skipped: what is missing is a failure.
package boottest
