// Package logs reads what a container wrote, from the files that its shim
// keeps: "log", the current one, and "log.1", "log.2", …, older ones.
//
// It promises each record once and in order, also across rotation while it
// follows, unless the reader is slower than the whole set of files turns over.
// It never writes, and it skips what is not a record: a power cut may leave
// anything.
package logs
